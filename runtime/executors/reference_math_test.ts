import assert from "node:assert/strict";
import fc from "fast-check";
import * as math from "./reference_math.ts";

const size = (max: number) => fc.integer({ min: 1, max });
const values = (length: number) =>
  fc.array(fc.double({ min: -4, max: 4, noNaN: true }), { minLength: length, maxLength: length })
    .map((list) => Float64Array.from(list));

Deno.test("linear: every sum in order, whatever rows stand beside it", () => {
  const cases = fc.tuple(size(5), size(9), size(9)).chain(([rows, inputs, outputs]) =>
    fc.tuple(fc.constant([rows, inputs, outputs] as const), values(rows * inputs), values(outputs * inputs))
  );
  fc.assert(fc.property(cases, ([[rows, inputs, outputs], x, w]) => {
    const y = math.linear(x, w, inputs, outputs);
    assert.equal(y.length, rows * outputs);
    for (let t = 0; t < rows; t++) {
      for (let o = 0; o < outputs; o++) {
        let sum = 0;
        for (let j = 0; j < inputs; j++) sum += x[t * inputs + j]! * w[o * inputs + j]!;
        assert.equal(y[t * outputs + o], sum);
      }
    }
  }));
});

Deno.test("largest: exact, ties by lower index, ascending", () => {
  const scores = fc.array(fc.oneof(fc.constantFrom(0, 1, 2), fc.double({ min: 0, max: 3, noNaN: true })));
  fc.assert(fc.property(scores, size(12), (list, count) => {
    const chosen = [...math.largest(Float64Array.from(list), count)];
    assert.equal(chosen.length, Math.min(count, list.length));
    assert.deepEqual(chosen, chosen.toSorted((a, b) => a - b));
    list.forEach((score, i) => {
      const before = list.filter((other, j) => other > score || (other === score && j < i)).length;
      assert.equal(chosen.includes(i), before < count);
    });
  }));
});

Deno.test("rms_norm has unit root mean square; rope keeps lengths and turns by differences", () => {
  const x = Float64Array.of(3, -4, 1, 2, 5, 0, -1, 2);
  const normed = math.rmsNorm(x, new Float64Array(4).fill(1), 0);
  for (const row of [normed.subarray(0, 4), normed.subarray(4)]) {
    assert.ok(Math.abs(row.reduce((sum, v) => sum + v * v, 0) / 4 - 1) < 1e-12);
  }
  // One head of 4: the product of two turned vectors depends only on the difference of their positions.
  const product = (p: number, q: number) => {
    const turned = math.rope(x, Float64Array.of(p, q), [1, 0.01]);
    return [0, 1, 2, 3].reduce((sum, i) => sum + turned[i]! * turned[4 + i]!, 0);
  };
  assert.ok(Math.abs(product(5, 2) - product(13, 10)) < 1e-12);
  assert.ok(Math.abs(product(5, 2) - product(2, 5)) > 1e-3);
  // Pairs are (i, i + d/2): position 1 turns the first pair by one radian.
  const turned = math.rope(Float64Array.of(1, 0, 0, 0), Float64Array.of(1), [1, 0.01]);
  assert.deepEqual([...turned], [Math.cos(1), 0, Math.sin(1), 0]);
  const scaled = math.rope(Float64Array.of(1, 0, 0, 0), Float64Array.of(1), [1, 0.01], 2);
  assert.deepEqual([...scaled], [2 * Math.cos(1), 0, 2 * Math.sin(1), 0]);
});

Deno.test("attention: causal, heads share keys, and a mean where all scores are equal", () => {
  const cache = new math.LayerCache(4); // 2 key-value heads of 2
  const keys = new Float64Array(12);
  const rows = Float64Array.from({ length: 12 }, (_, i) => i);
  cache.write(0, keys, rows);
  const shape = { heads: 4, kvHeads: 2, headDim: 2, scale: 1 };
  const out = math.attention(new Float64Array(8).fill(1), cache, 1, shape);
  // Position 1 sees rows 0 and 1; heads 0 and 1 read key-value head 0, heads 2 and 3 head 1.
  assert.deepEqual([...out], [2, 3, 2, 3, 4, 5, 4, 5]);
  // A score far above the others takes all.
  keys.set([1000, 0, 0, 0], 4);
  cache.write(0, keys, rows);
  assert.deepEqual(
    [...math.attention(new Float64Array(8).fill(1), cache, 2, shape)].slice(0, 2),
    [4, 5],
  );
});
