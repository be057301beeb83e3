import assert from "node:assert/strict";
import { normals } from "../../../tests/fixtures/packing.ts";
import { runLaunches } from "./fixture.ts";
import { MOST_TOP_K, packTopK, topKLaunches } from "./sampling.ts";

function topK(logits: Float32Array, vocabulary: number, k: number) {
  const n = logits.length / vocabulary;
  const indices = new Int32Array(n * k).fill(-1), values = new Float32Array(n * k);
  runLaunches(topKLaunches(vocabulary, k, n), {
    name: "topK",
    step: { n, tokens: n, tiles: 0, context: 0 },
    operands: { logits, indices, values },
    parameters: (addresses) =>
      packTopK({
        logits: addresses.get("logits")!,
        indices: addresses.get("indices")!,
        values: addresses.get("values")!,
        vocabulary,
        k,
      }),
  });
  return { indices, values };
}

/** The largest first, of equal ones the lower index, NaN last. */
function expectedIndices(row: Float32Array, k: number): number[] {
  const order = (x: number) => Number.isNaN(x) ? -Infinity : x;
  return Array.from(row.keys()).sort((i, j) => {
    const [a, b] = [row[i]!, row[j]!];
    return Number(Number.isNaN(a)) - Number(Number.isNaN(b)) ||
      (order(a) === order(b) ? i - j : order(b) - order(a));
  }).slice(0, k);
}

function check(logits: Float32Array, vocabulary: number, k: number, what: string): void {
  const { indices, values } = topK(logits, vocabulary, k);
  for (let t = 0; t < logits.length / vocabulary; t++) {
    const row = logits.subarray(t * vocabulary, (t + 1) * vocabulary), expected = expectedIndices(row, k);
    assert.deepEqual([...indices.subarray(t * k, (t + 1) * k)], expected, `${what}, row ${t}`);
    assert.deepEqual(
      [...values.subarray(t * k, (t + 1) * k)],
      expected.map((i) => row[i]!),
      `${what}, row ${t}`,
    );
  }
}

Deno.test("the k largest logits of rows of ragged vocabularies", () => {
  for (
    const [vocabulary, k, n] of [[1, 1, 1], [2, 2, 3], [100, 64, 2], [4096, 1, 2], [4097, 40, 3], [
      9001,
      64,
      2,
    ]] as const
  ) {
    check(normals(n * vocabulary, vocabulary), vocabulary, k, `${k} of ${vocabulary}`);
  }
});

Deno.test("of equal logits the lower index wins, within a slice and among slices", () => {
  const vocabulary = 3 * 4096 + 5;
  const few = normals(vocabulary, 3).map((x) => Math.round(x));
  check(few, vocabulary, 64, "few values");
  check(new Float32Array(vocabulary).fill(-2), vocabulary, 64, "one value");
  check(new Float32Array(vocabulary).fill(-Infinity), vocabulary, 2, "nothing but -Infinity");
});

Deno.test("-0 equals 0, a NaN is never the largest, and nothing but NaN gives index 0", () => {
  check(Float32Array.of(-0, 0, -1, -0), 4, 4, "zeros");
  check(Float32Array.of(NaN, -Infinity, NaN, -5, Infinity, 1e-45, -1e-45), 7, 7, "edges");
  check(new Float32Array(5000).fill(NaN), 5000, 2, "NaN");
});

Deno.test("a row alone has the same answer as among others", () => {
  const vocabulary = 5000, logits = normals(3 * vocabulary, 9), k = 7;
  const { indices } = topK(logits, vocabulary, k);
  for (let t = 0; t < 3; t++) {
    const alone = topK(logits.slice(t * vocabulary, (t + 1) * vocabulary), vocabulary, k);
    assert.deepEqual(alone.indices, indices.slice(t * k, (t + 1) * k));
  }
});

Deno.test("what cannot be chosen is refused", () => {
  for (const [vocabulary, k] of [[10, 0], [10, 11], [1000, MOST_TOP_K + 1], [2 ** 20 + 1, 1]] as const) {
    assert.throws(() => topKLaunches(vocabulary, k, 1), RangeError);
  }
  assert.deepEqual(topKLaunches(10, 1, 0), []);
});
