/** Operands of the tests of row kernels, and the CPU's rule for int8 codes. */
import assert from "node:assert/strict";
import { normals } from "../../../tests/fixtures/packing.ts";

/** Ragged widths, and those of models. */
export const WIDTHS = [1, 2, 31, 64, 100, 576, 1536, 5000] as const;

/** f32 [n, width], `stride` floats between rows; NaN lies between them, where nobody may read. */
export function strided(n: number, width: number, stride: number, seed: number): Float32Array<ArrayBuffer> {
  const values = normals((n - 1) * stride + width, seed);
  return values.map((x, i) => i % stride < width ? x : NaN);
}

/** Row t of what `strided` makes, for a run of its own. */
export function rowOf<A extends Float32Array | undefined>(x: A, t: number, width: number, stride: number) {
  return x?.slice(t * stride, t * stride + width);
}

export interface Deltas {
  readonly lowRank: Float32Array | undefined;
  readonly sparse: Float32Array | undefined;
}
export const DELTAS = ["none", "lowRank", "sparse", "both"] as const;
export function deltas(
  which: typeof DELTAS[number],
  n: number,
  width: number,
  stride: number,
  seed: number,
): Deltas {
  const make = (name: string, seed: number) =>
    which === name || which === "both" ? strided(n, width, stride, seed) : undefined;
  return { lowRank: make("lowRank", seed), sparse: make("sparse", seed + 1) };
}

/** base + (lowRank + sparse) in f32, as kernels round it; absent ones left out. */
export function corrected(base: Float32Array, { lowRank, sparse }: Deltas): Float32Array {
  if (!lowRank && !sparse) return base;
  return base.map((x, i) =>
    x + Math.fround(lowRank && sparse ? lowRank[i]! + sparse[i]! : (lowRank ?? sparse)![i]!)
  );
}

export interface Codes {
  readonly codes: Int8Array;
  readonly scales: Float32Array;
  readonly sums: Int32Array;
}
export interface CodeSizes {
  readonly group: number;
  readonly groups: number;
  readonly codeStride: number;
}
/** As plans lay codes out: rows of a multiple of 128. */
export function codeSizes(width: number, group: number): CodeSizes {
  if (group === 0) return { group, groups: 0, codeStride: 0 };
  return { group, groups: Math.ceil(width / group), codeStride: Math.ceil(width / 128) * 128 };
}
/** For a kernel to fill; what is in them is none of its answers. */
export function emptyCodes(n: number, { groups, codeStride }: CodeSizes): Codes {
  return {
    codes: new Int8Array(n * codeStride).fill(-128),
    scales: new Float32Array(n * groups).fill(-1),
    sums: new Int32Array(n * groups).fill(-1),
  };
}

/** Codes of x [n, width] by the rule of ffi/simd/elementwise.cpp (quantize_group), in f32. */
export function codesOf(x: Float32Array, n: number, width: number, sizes: CodeSizes): Codes {
  const { group, groups, codeStride } = sizes;
  const made = emptyCodes(n, sizes);
  made.codes.fill(0);
  for (let t = 0; t < n; t++) {
    for (let g = 0; g < groups; g++) {
      const own = x.subarray(t * width + g * group, t * width + Math.min(width, (g + 1) * group));
      const absmax = own.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const usable = absmax >= 2 ** -100 && absmax < Infinity;
      const inverse = Math.fround(127 / absmax);
      let sum = 0;
      own.forEach((value, i) => {
        const code = usable ? roundToEven(Math.fround(value * inverse)) : 0;
        made.codes[t * codeStride + g * group + i] = code;
        sum += code;
      });
      made.sums[t * groups + g] = sum;
      made.scales[t * groups + g] = usable ? absmax / 127 : absmax < 2 ** -100 ? 0 : NaN;
    }
  }
  return made;
}

function roundToEven(x: number): number {
  const low = Math.floor(x), rest = x - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

export function assertCodes(actual: Codes, expected: Codes, what: string): void {
  assert.deepEqual(actual.codes, expected.codes, `${what}: codes`);
  assert.deepEqual(actual.scales, expected.scales, `${what}: scales`);
  assert.deepEqual(actual.sums, expected.sums, `${what}: sums`);
}

/** Every difference is within `relative` of what is expected; infinities and NaN are the same. */
export function assertNear(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  relative: number,
  what: string,
): void {
  assert.equal(actual.length, expected.length, what);
  for (let i = 0; i < expected.length; i++) {
    const [a, e] = [actual[i]!, expected[i]!];
    const same = Object.is(a, e) || Math.abs(a - e) <= relative * Math.abs(e) + 2 ** -149;
    assert.ok(same, `${what}: element ${i} is ${a}, expected ${e}`);
  }
}
