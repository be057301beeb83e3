import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../errors.ts";
import type { WeightFormat } from "../weights/format.ts";
import { chooseFormats, type FormatError, lossOf, type MeasuredWeight } from "./formats.ts";

const KINDS = ["q2", "q3", "q4", "q8"] as const;
const formatOf = (i: number): WeightFormat => ({ kind: KINDS[i] ?? "q8", group: 64 });

/** A weight of these errors in q2, q3, q4 and q8, of 2, 3, 4 and 8 bits. */
function weight(name: string, elements: number, errors: readonly number[]): MeasuredWeight {
  const bits = [2, 3, 4, 8];
  return {
    name,
    elements,
    candidates: errors.map((relativeError, i): FormatError => {
      return { format: formatOf(i), bytes: elements * (bits[i] ?? 0) / 8, relativeError };
    }),
  };
}

function kinds(weights: readonly MeasuredWeight[], bits: number): string[] {
  const chosen = chooseFormats({ weights, policy: { kind: "bitsPerWeight", bits } });
  return weights.map((w) => chosen.get(w.name)?.format.kind ?? "none");
}

Deno.test("bits go where they win most of the error", () => {
  const even = weight("even", 800, [0.12, 0.03, 0.008, 0.0001]);
  const hard = weight("hard", 800, [0.4, 0.1, 0.03, 0.0003]);
  const small = weight("small", 80, [0.4, 0.1, 0.03, 0.0003]);
  assert.deepEqual(kinds([even, hard, small], 8), ["q8", "q8", "q8"]);
  assert.deepEqual(kinds([even, hard], 3), ["q3", "q3"]);
  assert.deepEqual(kinds([even, hard], 3.5), ["q3", "q4"]);
  assert.deepEqual(kinds([even, hard, small], 2.1), ["q2", "q2", "q4"]);
  // A format that is worse than a mixture of its neighbours is skipped: the bytes do more elsewhere.
  assert.deepEqual(kinds([weight("odd", 800, [0.4, 0.39, 0.01, 0])], 3.9), ["q2"]);
});

Deno.test("bits that no format can meet are refused", () => {
  const weights = [weight("w", 800, [0.1, 0.05])];
  for (const bits of [1.99, 0, -1, NaN]) {
    assert.throws(
      () => kinds(weights, bits),
      (e) => e instanceof HcinferError && e.kind === "usage" && /must be 2\.00 or more/.test(e.message),
    );
  }
});

Deno.test("never more bytes than allowed, and within one step of the best of all choices", () => {
  const arbitrary = fc.array(
    fc.tuple(
      fc.integer({ min: 1, max: 9 }),
      fc.array(fc.double({ min: 0, max: 1, noNaN: true }), {
        minLength: 4,
        maxLength: 4,
      }),
    ),
    { minLength: 1, maxLength: 4 },
  );
  fc.assert(fc.property(arbitrary, fc.double({ min: 2, max: 9, noNaN: true }), (specs, bits) => {
    const weights = specs.map(([size, errors], i) => {
      return weight(`w${i}`, 800 * size, errors.toSorted((a, b) => b - a));
    });
    const limit = bits * weights.reduce((sum, w) => sum + w.elements, 0) / 8;
    const chosen = chooseFormats({ weights, policy: { kind: "bitsPerWeight", bits } });
    const picked = weights.map((w) => {
      return w.candidates.find((c) => c.format.kind === chosen.get(w.name)?.format.kind) as FormatError;
    });
    const bytes = picked.reduce((sum, c) => sum + c.bytes, 0);
    const loss = weights.reduce((sum, w, i) => sum + lossOf(w, picked[i] as FormatError), 0);
    assert.ok(bytes <= limit);
    let best = Infinity;
    let largest = 0;
    const visit = (i: number, bytes: number, loss: number): void => {
      const w = weights[i];
      if (bytes > limit) return;
      if (w === undefined) best = Math.min(best, loss);
      else for (const c of w.candidates) visit(i + 1, bytes + c.bytes, loss + lossOf(w, c));
    };
    visit(0, 0, 0);
    for (const w of weights) {
      const losses = w.candidates.map((c) => lossOf(w, c));
      largest = Math.max(largest, Math.max(...losses) - Math.min(...losses));
    }
    assert.ok(loss <= best + largest + 1e-9, `${loss}, best ${best}`);
  }));
});
