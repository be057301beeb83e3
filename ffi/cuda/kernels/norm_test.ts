import assert from "node:assert/strict";
import { normals } from "../../../tests/fixtures/packing.ts";
import { runInstruction } from "./fixture.ts";
import {
  assertCodes,
  assertNear,
  codeSizes,
  codesOf,
  corrected,
  DELTAS,
  deltas,
  emptyCodes,
  strided,
  WIDTHS,
} from "../../../tests/fixtures/rows.ts";

/**
 * Of a mean of squares: at most 16 + 5 + 4 additions in a row for up to 8192 elements, half of it in the root; then the
 * root, two divisions and two products.
 */
const ERROR = (25 / 2 + 5) * 2 ** -24;
const EPSILON = Math.fround(1e-5);

interface Case {
  readonly n: number;
  readonly tokens?: number;
  readonly width: number;
  readonly heads?: number;
  readonly group?: number;
  readonly rows?: Int32Array;
  /** Deltas of a; and of b, which is absent where it is left out. */
  readonly a?: typeof DELTAS[number];
  readonly b?: typeof DELTAS[number];
  readonly sum?: boolean;
  readonly gap?: number;
  readonly twins?: boolean;
}

function run(of: Case) {
  const { n, tokens = n, width, heads = 1, group = 0, rows, a: forA = "none", b: forB, gap = 0 } = of;
  const row = heads * width, stride = row + gap, sizes = codeSizes(width, group);
  const a = strided(tokens, row, stride, 1), ofA = deltas(forA, tokens, row, stride, 3);
  const b = forB ? strided(tokens, row, stride, 2) : undefined;
  const ofB = deltas(forB ?? "none", tokens, row, stride, 5);
  const weight = normals(width, 7), made = emptyCodes(n, sizes);
  const out = new Float32Array(n * row), sum = of.sum ? new Float32Array(n * row) : undefined;
  const twins = { out: new Float32Array(n * row), ...(sum ? { sum: new Float32Array(n * row) } : {}) };
  const operands = {
    ...{ rows, a, aLowRank: ofA.lowRank, aSparse: ofA.sparse, b, bLowRank: ofB.lowRank, bSparse: ofB.sparse },
    ...{ weight, sum, out, ...made },
  };
  const integers = { width, heads, aStride: stride, bStride: stride, ...sizes };
  runInstruction("norm", {
    ...{ operands, integers, reals: { epsilon: EPSILON }, step: { n, tokens } },
    ...(of.twins ? { twins } : {}),
  });

  const valueA = corrected(a, ofA), valueB = b && corrected(b, ofB);
  const total = new Float32Array(n * row), expected = new Float64Array(n * row);
  for (let item = 0; item < n * heads; item++) {
    const t = Math.floor(item / heads), named = rows?.[t] ?? t;
    const from = (named >= 0 && named < tokens ? named : 0) * stride + item % heads * width;
    let squares = 0;
    for (let i = 0; i < width; i++) {
      const value = total[item * width + i] = valueA[from + i]! + (valueB?.[from + i] ?? 0);
      squares += Math.fround(value) ** 2;
    }
    const inverse = 1 / Math.sqrt(squares / width + EPSILON);
    for (let i = 0; i < width; i++) {
      expected[item * width + i] = weight[i]! * inverse * total[item * width + i]!;
    }
  }
  return { operands, out, sum, total, expected, made, sizes, twins, row, stride };
}

function check(of: Case): void {
  const { out, sum, total, expected, made, sizes, twins } = run(of);
  const what = JSON.stringify(of);
  assertNear(out, expected, ERROR, what);
  if (sum) assert.deepEqual(sum, total, `${what}: sum`);
  assertCodes(made, codesOf(out, of.n, of.width, sizes), what);
  if (!of.twins) return;
  assert.deepEqual(twins.out, out, `${what}: twin`);
  if (sum) assert.deepEqual(twins.sum, total, `${what}: twin of the sum`);
}

Deno.test("norm: ragged widths, several tokens, with and without codes, deltas, a sum and twins", () => {
  for (const [at, width] of WIDTHS.entries()) {
    check({ n: 1, width, a: DELTAS[at % 4]!, b: DELTAS[(at + 1) % 4]!, group: 32, sum: true, twins: true });
    check({ n: 3, width, a: DELTAS[(at + 2) % 4]!, group: 64, gap: 4 });
    check({ n: 2, width, b: DELTAS[(at + 3) % 4]!, group: 128, sum: at % 2 === 0, gap: 1, twins: true });
    check({ n: 2, width });
  }
});

Deno.test("norm: rows wider than a block keeps at hand are read again", () => {
  for (const width of [8192, 8193, 11000]) {
    for (const sum of [true, false]) check({ n: 2, width, a: "sparse", b: "both", group: 128, sum });
  }
});

Deno.test("norm: heads of a row", () => {
  for (const heads of [1, 3, 8]) {
    for (const width of [2, 31, 64, 128]) {
      check({ n: 3, width, heads, a: "both", gap: 5 });
      check({ n: 2, width, heads, b: "lowRank", sum: true, twins: true });
    }
  }
});

Deno.test("norm: gathered rows; a number out of range is row 0", () => {
  const rows = Int32Array.of(3, 0, -1, 4, 2, -(2 ** 31));
  for (const width of [31, 576]) {
    check({ n: rows.length, tokens: 4, rows, width, a: "both", b: "lowRank", sum: true, group: 32, gap: 4 });
    check({ n: rows.length, tokens: 4, rows, width, heads: 3 });
  }
});

Deno.test("norm: a token alone has the same bits as among others", () => {
  for (const width of WIDTHS) {
    const n = 3, group = 64;
    const { operands, out, made, sizes, row, stride } = run({
      n,
      width,
      a: "both",
      b: "both",
      group,
      gap: 3,
    });
    for (let t = 0; t < n; t++) {
      const own = (x: Float32Array | undefined) => x?.slice(t * stride, t * stride + row);
      const { a, aLowRank, aSparse, b, bLowRank, bSparse, weight } = operands;
      const alone = new Float32Array(row), codes = emptyCodes(1, sizes);
      runInstruction("norm", {
        operands: {
          ...{ a: own(a), aLowRank: own(aLowRank), aSparse: own(aSparse) },
          ...{ b: own(b), bLowRank: own(bLowRank), bSparse: own(bSparse), weight, out: alone, ...codes },
        },
        integers: { width, heads: 1, aStride: row, bStride: row, ...sizes },
        reals: { epsilon: EPSILON },
      });
      assert.deepEqual(alone, out.slice(t * row, (t + 1) * row), `width ${width}, token ${t}`);
      const { codeStride } = sizes;
      assert.deepEqual(codes.codes, made.codes.slice(t * codeStride, (t + 1) * codeStride));
    }
  }
});

Deno.test("norm: zeros, denormals and what is not finite stay in their row", () => {
  const width = 100, n = 4, sizes = codeSizes(width, 32);
  const a = strided(n, width, width, 1).fill(0, 0, width).fill(1e-41, width, 2 * width);
  a[2 * width + 7] = Infinity;
  const out = new Float32Array(n * width),
    made = emptyCodes(n, sizes),
    weight = new Float32Array(width).fill(1);
  runInstruction("norm", {
    operands: { a, weight, out, ...made },
    integers: { width, heads: 1, aStride: width, bStride: 0, ...sizes },
    reals: { epsilon: EPSILON },
    step: { n },
  });
  assertCodes(made, codesOf(out, n, width, sizes), "edges");
  assert.ok(out.subarray(0, width).every((x) => x === 0));
  assertNear(out.subarray(width, width + 1), [a[width]! / Math.sqrt(EPSILON)], 1e-3, "denormal");
  assert.ok(Number.isNaN(out[2 * width + 7]!));
  assert.deepEqual([...made.scales.slice(2 * 4, 3 * 4)], [NaN, 0, 0, 0]);
  assert.ok(out.subarray(3 * width).every((x) => Number.isFinite(x) && x !== 0));
});
