import assert from "node:assert/strict";
import { PAGE_POSITIONS } from "../../../compiler/memory.ts";
import { normals } from "../../../tests/fixtures/packing.ts";
import { runInstruction } from "./fixture.ts";
import { bitsOf, cacheOf, type HeadShape, keyAt, near, valueAt } from "./pages_fixture.ts";

const UNTOUCHED = 77;
/** Rounding of f16, and some of fp32 before. */
const F16_BOUND = 2 ** -11 + 1e-5;

/** A value with deltas: rows [n, stride] of which `width` columns count. */
interface Input {
  readonly stride: number;
  readonly base: Float32Array<ArrayBuffer>;
  readonly lowRank?: Float32Array<ArrayBuffer>;
  readonly sparse?: Float32Array<ArrayBuffer>;
}

function inputOf(n: number, width: number, seed: number, deltas: "none" | "one" | "two"): Input {
  const stride = width + 4, length = (n - 1) * stride + width;
  const base = normals(length, seed);
  if (deltas === "none") return { stride, base };
  const sparse = normals(length, seed + 100);
  return deltas === "one"
    ? { stride, base, sparse }
    : { stride, base, sparse, lowRank: normals(length, seed + 200) };
}

function operandsOf(name: string, { base, lowRank, sparse }: Input) {
  return { [name]: base, [`${name}LowRank`]: lowRank, [`${name}Sparse`]: sparse };
}

/** Head `head` of a token: normed where there is a weight, turned where there are tables. */
function headOf(
  { stride, base, lowRank, sparse }: Input,
  headDim: number,
  token: number,
  head: number,
  position: number,
  { weight, epsilon = 0, tables }: {
    weight?: Float32Array | undefined;
    epsilon?: number;
    tables?: Tables | undefined;
  },
): Float64Array {
  const x = Float64Array.from({ length: headDim }, (_, d) => {
    const at = token * stride + head * headDim + d;
    return base[at]! + (lowRank?.[at] ?? 0) + (sparse?.[at] ?? 0);
  });
  const mean = x.reduce((sum, value) => sum + value * value, 0) / headDim;
  const normed = weight ? x.map((value, d) => weight[d]! * value / Math.sqrt(mean + epsilon)) : x;
  if (!tables) return normed;
  const half = headDim / 2;
  return normed.map((value, d) => {
    const cosine = tables.cosines[position * half + d % half]!,
      sine = tables.sines[position * half + d % half]!;
    return d < half ? value * cosine - normed[d + half]! * sine : value * cosine + normed[d - half]! * sine;
  });
}

interface Tables {
  readonly cosines: Float32Array<ArrayBuffer>;
  readonly sines: Float32Array<ArrayBuffer>;
}
function tablesOf(context: number, headDim: number): Tables {
  const angles = normals(context * headDim / 2, 9);
  return { cosines: angles.map(Math.cos), sines: angles.map(Math.sin) };
}

const within = (value: number, count: number) => value >= 0 && value < count;

for (const headDim of [2, 64, 80, 256]) {
  Deno.test(`rope of heads of ${headDim}`, () => {
    const heads = 3, context = 100, tables = tablesOf(context, headDim);
    const positions = Int32Array.of(0, 99, 17, -1, 100, 2 ** 31 - 1);
    const n = positions.length, width = heads * headDim;
    for (const deltas of ["none", "one", "two"] as const) {
      const x = inputOf(n, width, 3, deltas);
      const out = new Float32Array(n * width).fill(UNTOUCHED),
        twin = new Float32Array(n * width).fill(UNTOUCHED);
      runInstruction("rope", {
        operands: { ...operandsOf("x", x), positions, ...tables, out },
        twins: { out: twin },
        integers: { heads, headDim, xStride: x.stride, context },
        step: { n },
      });
      positions.forEach((position, t) => {
        for (let h = 0; h < heads; h++) {
          const at = t * width + h * headDim, found = out.subarray(at, at + headDim);
          if (within(position, context)) {
            near(found, headOf(x, headDim, t, h, position, { tables }), 1e-6, `${deltas}, token ${t}`);
            assert.deepEqual(twin.subarray(at, at + headDim), found);
          } else assert.ok(found.every((value) => value === UNTOUCHED), `position ${position}`);
        }
      });
    }
  });
}

/** Where the tokens of a step stand; numbers may be wrong. */
interface Place {
  readonly sequence: number;
  readonly position: number;
}
const MOST_PAGES = 3, SEQUENCES = 2, PAGE_COUNT = 7, CONTEXT = MOST_PAGES * PAGE_POSITIONS - 5;
const PAGES = Int32Array.of(6, 0, 4, 2, PAGE_COUNT, -1);

function append(
  shape: HeadShape,
  places: readonly Place[],
  { norms, turned, deltas, layer = 3, edit }: {
    norms: boolean;
    turned: boolean;
    deltas: "none" | "one" | "two";
    layer?: number;
    edit?(inputs: { q: Input; k: Input; v: Input }): void;
  },
) {
  const { heads, kvHeads, headDim } = shape, n = places.length;
  const q = inputOf(n, heads * headDim, 11, deltas), k = inputOf(n, kvHeads * headDim, 12, deltas);
  const v = inputOf(n, kvHeads * headDim, 13, deltas);
  edit?.({ q, k, v });
  const qNorm = norms ? normals(headDim, 14) : undefined, kNorm = norms ? normals(headDim, 15) : undefined;
  const tables = turned ? tablesOf(CONTEXT, headDim) : undefined;
  const cacheK = cacheOf(shape, PAGE_COUNT, UNTOUCHED), cacheV = cacheOf(shape, PAGE_COUNT, UNTOUCHED);
  const out = new Float32Array(n * heads * headDim).fill(UNTOUCHED);
  const { overflow } = runInstruction("append", {
    operands: {
      ...operandsOf("q", q),
      ...operandsOf("k", k),
      ...operandsOf("v", v),
      qNorm,
      kNorm,
      ...tables,
      positions: Int32Array.from(places, ({ position }) => position),
      sequences: Int32Array.from(places, ({ sequence }) => sequence),
      pages: PAGES,
      out,
      cacheK: bitsOf(cacheK),
      cacheV: bitsOf(cacheV),
    },
    integers: {
      ...shape,
      qStride: q.stride,
      kStride: k.stride,
      vStride: v.stride,
      pageCount: PAGE_COUNT,
      mostSequences: SEQUENCES,
      mostPages: MOST_PAGES,
      context: CONTEXT,
      layer,
    },
    reals: { qEpsilon: 1e-5, kEpsilon: 1e-3 },
    step: { n },
  });
  return { q, k, v, qNorm, kNorm, tables, cacheK, cacheV, out, overflow };
}

const PLACES: readonly Place[] = [
  { sequence: 0, position: 0 },
  { sequence: 0, position: 127 },
  { sequence: 1, position: 63 },
  { sequence: 0, position: CONTEXT - 1 },
  // Left out: beyond the context, with pages that do not exist, of no sequence (queries do not ask for the page).
  { sequence: 0, position: CONTEXT },
  { sequence: 0, position: -1 },
  { sequence: 1, position: 64 },
  { sequence: 1, position: 128 },
  { sequence: 2, position: 5 },
  { sequence: -1, position: 6 },
];

for (
  const shape of [
    { heads: 4, kvHeads: 2, headDim: 64 },
    { heads: 3, kvHeads: 1, headDim: 80 },
    { heads: 2, kvHeads: 2, headDim: 12 },
    { heads: 1, kvHeads: 1, headDim: 256 },
  ]
) {
  Deno.test(`append of ${shape.heads} to ${shape.kvHeads} heads of ${shape.headDim}`, () => {
    const { heads, kvHeads, headDim } = shape;
    for (
      const [norms, turned, deltas] of [
        [false, false, "none"],
        [true, false, "one"],
        [false, true, "two"],
        [true, true, "two"],
      ] as const
    ) {
      const what = `norms ${norms}, turned ${turned}, deltas ${deltas}`;
      const { q, k, v, qNorm, kNorm, tables, ...made } = append(shape, PLACES, { norms, turned, deltas });
      assert.equal(made.overflow, undefined, what);
      const cacheK = cacheOf(shape, PAGE_COUNT, UNTOUCHED), cacheV = cacheOf(shape, PAGE_COUNT, UNTOUCHED);
      PLACES.forEach(({ sequence, position }, t) => {
        for (let h = 0; h < heads; h++) {
          const found = made.out.subarray((t * heads + h) * headDim).subarray(0, headDim);
          const expected = within(position, CONTEXT)
            ? headOf(q, headDim, t, h, position, { weight: qNorm, epsilon: 1e-5, tables })
            : found.map(() => UNTOUCHED);
          near(found, expected, 2e-6, `${what}: query ${t}`);
        }
        const page = PAGES[sequence * MOST_PAGES + Math.floor(position / PAGE_POSITIONS)] ?? -1;
        if (!within(sequence, SEQUENCES) || !within(position, CONTEXT) || !within(page, PAGE_COUNT)) return;
        for (let h = 0; h < kvHeads; h++) {
          const key = headOf(k, headDim, t, h, position, { weight: kNorm, epsilon: 1e-3, tables });
          const value = headOf(v, headDim, t, h, position, {});
          for (let d = 0; d < headDim; d++) {
            cacheK[keyAt(shape, page, h, position % PAGE_POSITIONS, d)] = key[d]!;
            cacheV[valueAt(shape, page, h, position % PAGE_POSITIONS, d)] = value[d]!;
          }
        }
      });
      near(made.cacheK, cacheK, F16_BOUND, `${what}: keys`);
      near(made.cacheV, cacheV, F16_BOUND, `${what}: values`);
    }
  });
}

Deno.test("a token's heads do not depend on the tokens beside it", () => {
  const shape = { heads: 3, kvHeads: 1, headDim: 80 },
    options = { norms: true, turned: true, deltas: "none" } as const;
  const together = append(shape, PLACES.slice(0, 3), options),
    alone = append(shape, PLACES.slice(0, 1), options);
  assert.deepEqual(together.out.subarray(0, 240), alone.out);
});

Deno.test("append reports the first key or value that f16 does not hold", () => {
  const shape = { heads: 2, kvHeads: 2, headDim: 64 };
  const overflow = (edit: (inputs: { q: Input; k: Input; v: Input }) => void, layer = 3) =>
    append(shape, PLACES, { norms: false, turned: false, deltas: "none", layer, edit }).overflow;
  const at = (token: number, column: number) => token * (2 * 64 + 4) + column;
  const code = (layer: bigint, token: bigint, value: bigint) => layer << 32n | token << 1n | value;
  assert.equal(overflow(({ k }) => k.base[at(2, 127)] = 65520), code(3n, 2n, 0n));
  assert.equal(overflow(({ k }) => k.base[at(2, 127)] = 65519), undefined);
  assert.equal(overflow(({ v }) => v.base[at(1, 0)] = -Infinity), code(3n, 1n, 1n));
  assert.equal(overflow(({ v }) => v.base[at(3, 70)] = NaN, 2 ** 20), code(2n ** 20n, 3n, 1n));
  assert.equal(
    overflow(({ k, v }) => k.base[at(1, 3)] = v.base[at(1, 3)] = v.base[at(0, 64)] = 1e9),
    code(3n, 0n, 1n),
  );
  assert.equal(overflow(({ k, v }) => k.base[at(1, 3)] = v.base[at(1, 3)] = 1e9), code(3n, 1n, 0n));
  assert.equal(overflow(({ q }) => q.base[0] = 1e9), undefined, "queries are not rounded");
  assert.equal(overflow(({ k }) => k.base[at(7, 0)] = 1e9), undefined, "a token that is left out");
});
