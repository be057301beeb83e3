import assert from "node:assert/strict";
import { ATTENTION_SCRATCH, PAGE_POSITIONS } from "../../../compiler/memory.ts";
import { normals } from "../../../tests/fixtures/packing.ts";
import type { Launch } from "../launch.ts";
import { rules } from "./attention.ts";
import { runInstruction } from "./fixture.ts";
import { bitsOf, cacheOf, type HeadShape, keyAt, near, valueAt } from "./pages_fixture.ts";

/** Tokens that follow each other in a sequence: the first one's position, and how many; they are a tile. */
type Run = readonly [sequence: number, position: number, count: number];

interface Scene extends HeadShape {
  readonly runs: readonly Run[];
  readonly scale: number;
  readonly q: Float32Array<ArrayBuffer>;
  readonly cacheK: Float16Array<ArrayBuffer>;
  readonly cacheV: Float16Array<ArrayBuffer>;
  readonly pages: Int32Array<ArrayBuffer>;
  readonly mostPages: number;
  readonly pageCount: number;
}

interface SceneOptions {
  /** Sequences share their first so many pages. */
  readonly shared?: number;
  readonly spread?: number;
}

const GROUPED: HeadShape = { heads: 6, kvHeads: 2, headDim: 64 };

/** Pages lie in no order; what no token has written is NaN. */
function sceneOf(
  shape: HeadShape,
  runs: readonly Run[],
  { shared = 0, spread = 1 }: SceneOptions = {},
): Scene {
  const ends: number[] = [];
  for (const [sequence, position, count] of runs) {
    ends[sequence] = Math.max(ends[sequence] ?? 0, position + count);
  }
  const mostPages = Math.max(...ends.map((end) => Math.ceil(end / PAGE_POSITIONS)));
  const pageCount = mostPages * ends.length + 1;
  const pages = Int32Array.from({ length: mostPages * ends.length }, (_, i) => {
    const page = i % mostPages < shared ? i % mostPages : i;
    return page * 7919 % pageCount;
  });
  const cacheK = cacheOf(shape, pageCount, NaN), cacheV = cacheOf(shape, pageCount, NaN);
  const { kvHeads, headDim } = shape;
  const random = normals(2 * pageCount * PAGE_POSITIONS * kvHeads * headDim, 5);
  ends.forEach((end, sequence) => {
    for (let position = 0; position < end; position++) {
      const page = pages[sequence * mostPages + Math.floor(position / PAGE_POSITIONS)]!;
      for (let head = 0; head < kvHeads; head++) {
        for (let d = 0; d < headDim; d++) {
          const slot = position % PAGE_POSITIONS, at = valueAt(shape, page, head, slot, d);
          cacheK[keyAt(shape, page, head, slot, d)] = random[2 * at]! * spread;
          cacheV[at] = random[2 * at + 1]!;
        }
      }
    }
  });
  const tokens = runs.reduce((sum, [, , count]) => sum + count, 0);
  const q = normals(tokens * shape.heads * headDim, 6);
  return { ...shape, runs, scale: 1 / Math.sqrt(headDim), q, cacheK, cacheV, pages, mostPages, pageCount };
}

/** In double precision, as in every textbook. */
function expected(scene: Scene): Float64Array {
  const { heads, kvHeads, headDim, runs, scale, q, cacheK, cacheV, pages, mostPages } = scene;
  const out = new Float64Array(q.length);
  let token = 0;
  for (const [sequence, first, count] of runs) {
    for (let i = 0; i < count; i++, token++) {
      for (let head = 0; head < heads; head++) {
        const kvHead = Math.floor(head / (heads / kvHeads)), row = (token * heads + head) * headDim;
        const place = (position: number, d: number) =>
          [
            scene,
            pages[sequence * mostPages + Math.floor(position / PAGE_POSITIONS)]!,
            kvHead,
            position % PAGE_POSITIONS,
            d,
          ] as const;
        const scores = Float64Array.from({ length: first + i + 1 }, (_, position) => {
          let sum = 0;
          for (let d = 0; d < headDim; d++) sum += q[row + d]! * cacheK[keyAt(...place(position, d))]!;
          return scale * sum;
        });
        const highest = scores.reduce((a, b) => Math.max(a, b));
        const weights = scores.map((score) => Math.exp(score - highest));
        const total = weights.reduce((a, b) => a + b);
        for (let d = 0; d < headDim; d++) {
          let sum = 0;
          weights.forEach((weight, position) => sum += weight * cacheV[valueAt(...place(position, d))]!);
          out[row + d] = sum / total;
        }
      }
    }
  }
  return out;
}

/** What the tests of bad numbers change. */
interface Raw {
  readonly tiles: Int32Array<ArrayBuffer>;
  readonly positions: Int32Array<ArrayBuffer>;
  readonly sequences: Int32Array<ArrayBuffer>;
  readonly pages: Int32Array<ArrayBuffer>;
}

function rawOf({ runs, pages }: Scene): Raw {
  let first = 0;
  const tiles = runs.flatMap(([, , count]) => [(first += count) - count, count]);
  const each = (of: (run: Run, i: number) => number) =>
    Int32Array.from(runs.flatMap((run) => Array.from({ length: run[2] }, (_, i) => of(run, i))));
  return {
    tiles: Int32Array.from(tiles),
    positions: each(([, position], i) => position + i),
    sequences: each(([sequence]) => sequence),
    pages: pages.slice(),
  };
}

/** Elements of `out` that were not written. */
const UNTOUCHED = 77;
/** Under which the rule takes each form. Walking looks at no bound, so that any makes it walk. */
const WALK = 1, SPLIT = 2 ** 20;

function attend(scene: Scene, bound: number, raw = rawOf(scene), twin?: Float32Array<ArrayBuffer>) {
  const { heads, kvHeads, headDim, scale, q, cacheK, cacheV, mostPages, pageCount } = scene;
  const n = q.length / heads / headDim;
  const out = new Float32Array(q.length).fill(UNTOUCHED);
  const mostSequences = raw.pages.length / mostPages;
  const context = mostPages * PAGE_POSITIONS;
  const integers = { heads, kvHeads, headDim, pageCount, mostSequences, mostPages, context };
  const step = { n, tokens: n, tiles: raw.tiles.length / 2, context: bound };
  // Tiles are as many as tokens, at most.
  const tiles = new Int32Array(2 * n);
  tiles.set(raw.tiles);
  runInstruction("attend", {
    operands: { q, cacheK: bitsOf(cacheK), cacheV: bitsOf(cacheV), ...raw, tiles, out },
    integers,
    reals: { scale },
    step,
    ...(twin ? { twins: { out: twin } } : {}),
  });
  return out;
}

const SHAPES: readonly HeadShape[] = [
  { heads: 2, kvHeads: 2, headDim: 2 },
  { heads: 3, kvHeads: 1, headDim: 12 },
  { heads: 6, kvHeads: 2, headDim: 64 },
  { heads: 8, kvHeads: 1, headDim: 80 },
  { heads: 4, kvHeads: 2, headDim: 128 },
  { heads: 2, kvHeads: 1, headDim: 256 },
];

for (const shape of SHAPES) {
  Deno.test(`attend agrees with double precision: ${shape.heads} to ${shape.kvHeads} heads of ${shape.headDim}`, () => {
    for (const seen of [1, 63, 64, 65, 255, 256, 257, 700]) {
      const scene = sceneOf(shape, [[0, seen - 1, 1]]);
      near(attend(scene, seen), expected(scene), 3e-6, `${seen} positions`);
    }
    for (const count of [2, 3, 5, 8]) {
      const scene = sceneOf(shape, [[0, 253, count]]);
      near(attend(scene, 253 + count), expected(scene), 3e-6, `a tile of ${count}`);
    }
  });
}

Deno.test("attend over several sequences that share pages", () => {
  const scene = sceneOf(GROUPED, [[0, 300, 3], [1, 130, 8], [2, 0, 7], [0, 303, 1], [1, 138, 2]], {
    shared: 2,
  });
  near(attend(scene, 512), expected(scene), 3e-6, "split");
});

Deno.test("a row of attention does not depend on what is computed beside it, nor on how", () => {
  for (
    const shape of [GROUPED, { heads: 5, kvHeads: 1, headDim: 80 }, { heads: 2, kvHeads: 2, headDim: 12 }]
  ) {
    const runs: Run[] = [[0, 252, 8], [1, 510, 5], [2, 20, 2]];
    const scene = sceneOf(shape, runs);
    const together = attend(scene, 515);
    near(together, expected(scene), 3e-6, "together");
    assert.deepEqual(attend(scene, WALK), together, "walking");
    assert.deepEqual(attend(scene, SPLIT), together, "a larger bound");
    const width = shape.heads * shape.headDim;
    let at = 0;
    for (const [sequence, position, count] of runs) {
      for (let i = 0; i < count; i++, at += width) {
        const q = scene.q.slice(at, at + width);
        const alone = { ...scene, q, runs: [[sequence, position + i, 1] as const] };
        for (const bound of [position + i + 1, WALK]) {
          assert.deepEqual(attend(alone, bound), together.slice(at, at + width), `${position + i} alone`);
        }
      }
    }
  }
});

Deno.test("attention's softmax is stable", () => {
  const scene = sceneOf(GROUPED, [[0, 600, 2]], { spread: 2000 });
  // A score of 1e4 is known within 1e-3.
  near(attend(scene, 602), expected(scene), 2e-2, "scores of thousands");
  const equal = sceneOf(GROUPED, [[0, 299, 1]], { spread: 0 });
  near(attend(equal, 300), expected(equal), 3e-6, "equal scores");
});

Deno.test("a value that is not finite reaches only the tokens that see it", () => {
  // The last two of four tokens see it: within a chunk, and from the beginning of one.
  for (const first of [100, 254]) {
    const scene = sceneOf(GROUPED, [[0, first, 4]]);
    const { headDim, heads, pages } = scene, bad = first + 2;
    const page = pages[Math.floor(bad / PAGE_POSITIONS)]!, slot = bad % PAGE_POSITIONS;
    scene.cacheV[valueAt(scene, page, 1, slot, 9)] = Infinity;
    scene.cacheK[keyAt(scene, page, 0, slot, 9)] = NaN;
    for (const bound of [258, WALK]) {
      const out = attend(scene, bound);
      const finite = (token: number, head: number) =>
        out.subarray((token * heads + head) * headDim).subarray(0, headDim).every(Number.isFinite);
      for (const head of [0, heads - 1]) {
        assert.deepEqual([0, 1, 2, 3].map((token) => finite(token, head)), [true, true, false, false]);
      }
    }
  }
});

Deno.test("attend leaves out tiles that are not of the step or need what lies outside the cache", () => {
  const scene = sceneOf(GROUPED, [[0, 60, 6], [1, 300, 2]]);
  const width = scene.heads * scene.headDim, good = attend(scene, 302);
  const cases: Record<string, (raw: Raw) => void> = {
    "a negative first token": ({ tiles }) => tiles[0] = -1,
    "a first token beyond the step": ({ tiles }) => tiles[0] = 8,
    "no token": ({ tiles }) => tiles[1] = 0,
    "more tokens than a tile has": ({ tiles }) => tiles[1] = 2 ** 31 - 1,
    "more tokens than the step has": ({ tiles }) => (tiles[0] = 3, tiles[1] = 6),
    "no such sequence": ({ sequences }) => sequences[0] = 2,
    "a negative sequence": ({ sequences }) => sequences[0] = -1,
    "a negative position": ({ positions }) => positions[0] = -5,
    "a position beyond the context": ({ positions }) => positions[0] = scene.mostPages * PAGE_POSITIONS - 5,
    "no such page": ({ pages }) => pages[1] = scene.pageCount,
    "a negative page": ({ pages }) => pages[0] = -1,
  };
  for (const [what, spoil] of Object.entries(cases)) {
    const raw = rawOf(scene);
    spoil(raw);
    for (const bound of [302, WALK]) {
      const out = attend(scene, bound, raw);
      assert.ok(out.subarray(0, 6 * width).every((x) => x === UNTOUCHED), what);
      assert.deepEqual(out.subarray(6 * width), good.subarray(6 * width), what);
    }
  }
  // A token beyond what the launch was made for is left out, too.
  const out = attend(sceneOf(GROUPED, [[0, 600, 1]]), 512);
  assert.ok(out.every((x) => x === UNTOUCHED));
});

Deno.test("attend puts its output where the other lane reads it", () => {
  const scene = sceneOf(GROUPED, [[0, 300, 3]]);
  for (const bound of [303, WALK]) {
    const twin = new Float32Array(scene.q.length);
    assert.deepEqual(twin, attend(scene, bound, rawOf(scene), twin));
  }
});

Deno.test("attend is split where few units have a long context", () => {
  const device = { capability: 90, multiprocessors: 132 };
  const integers = { heads: 32, kvHeads: 8, headDim: 128, context: 131072 };
  const launch = (n: number, tiles: number, context: number): readonly Launch[] =>
    rules.attend(integers, { n, tokens: n, tiles, context }, device);
  const kernels = (...step: [n: number, tiles: number, context: number]) =>
    launch(...step).map(({ kernel }) => kernel);
  assert.deepEqual(kernels(1, 1, 256), ["attend_walk"]);
  assert.deepEqual(kernels(1, 1, 257), ["attend_split", "attend_merge"]);
  assert.deepEqual(kernels(2048, 256, 2048), ["attend_walk"]);
  assert.deepEqual(kernels(64, 64, 131072), ["attend_walk"]);
  assert.deepEqual(launch(0, 0, 512), []);
  assert.deepEqual(launch(1, 1, 32768)[0]!.grid, [8, 128, 1]);
  for (const n of [1, 4, 16, 64]) {
    assert.ok(launch(n, n, 131072).every(({ scratch = 0 }) => scratch <= ATTENTION_SCRATCH));
  }
  assert.throws(
    () => rules.attend({ ...integers, headDim: 258 }, { n: 1, tokens: 1, tiles: 1, context: 1 }, device),
    {
      name: "HcinferError",
    },
  );
});
