import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../compiler/errors.ts";
import { largest, Sampler, type SamplerOptions } from "./sampler.ts";

const logit = fc.oneof(
  fc.float({ min: -40, max: 40, noNaN: true }),
  fc.constantFrom(-Infinity, 0, 1, 1),
);
const vocabulary = fc.array(logit, { minLength: 1, maxLength: 60 })
  .map((values) => Float32Array.from(values))
  .filter((logits) => logits.some((v) => v > -Infinity));
const options = fc.record({
  temperature: fc.constantFrom(0.01, 0.3, 1, 3),
  topK: fc.integer({ min: 0, max: 70 }),
  topP: fc.oneof(fc.constant(1), fc.double({ min: 0.01, max: 1, noNaN: true })),
  minP: fc.oneof(fc.constant(0), fc.double({ min: 0, max: 1, noNaN: true })),
  seed: fc.integer({ min: 0 }),
});

/** The definition, word for word, with everything sorted. */
function survivors(logits: Float32Array, { temperature = 1, topK = 0, topP = 1, minP = 0 }: SamplerOptions) {
  const most = Math.max(...logits);
  const weight = (id: number) => Math.exp((logits[id]! - most) / temperature);
  let ids = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b);
  if (topK > 0) ids = ids.slice(0, topK);
  if (topP < 1) {
    const total = ids.reduce((sum, id) => sum + weight(id), 0);
    let reached = 0;
    ids = ids.filter((id, i) => {
      const kept = i === 0 || reached < topP * total * (1 - 1e-12);
      reached += weight(id);
      return kept;
    });
  }
  return new Set(ids.filter((id) => weight(id) >= minP));
}

Deno.test("a sampled token survives every step of the definition", () => {
  fc.assert(fc.property(vocabulary, options, (logits, options) => {
    const sampler = new Sampler(options);
    // One more than survive, where a sum of probabilities is within rounding of p.
    const allowed = survivors(logits, { ...options, topP: Math.min(1, options.topP * (1 + 1e-9)) });
    for (let i = 0; i < 5; i++) assert.ok(allowed.has(sampler.next(logits)));
  }));
});

Deno.test("tokens come as often as their probabilities say", () => {
  const logits = Float32Array.of(2, 0, 1, -1, 1.5, -3);
  for (
    const options of [{}, { topK: 3 }, { topP: 0.8 }, { minP: 0.2 }, { topK: 5, topP: 0.9, minP: 0.1 }]
  ) {
    const all = { temperature: 0.7, seed: 1, ...options };
    const kept = survivors(logits, all);
    const weights = Array.from(logits, (l, id) => kept.has(id) ? Math.exp(l / 0.7) : 0);
    const total = weights.reduce((a, b) => a + b);
    const counts = new Array<number>(logits.length).fill(0);
    const sampler = new Sampler(all);
    const draws = 20000;
    for (let i = 0; i < draws; i++) counts[sampler.next(logits)]!++;
    counts.forEach((count, id) => {
      const p = weights[id]! / total;
      // Five standard deviations.
      assert.ok(Math.abs(count - draws * p) <= 5 * Math.sqrt(draws * p * (1 - p)), `${id}: ${count}`);
    });
  }
});

Deno.test("a seed gives the same tokens; another gives others", () => {
  const logits = new Float32Array(1000);
  const tokens = (seed: number) => {
    const sampler = new Sampler({ temperature: 1, seed });
    return Array.from({ length: 8 }, () => sampler.next(logits));
  };
  assert.deepEqual(tokens(1), tokens(1));
  assert.deepEqual(tokens(1), [102, 382, 251, 666, 633, 32, 52, 840]);
  assert.notDeepEqual(tokens(1), tokens(2));
  assert.notDeepEqual(tokens(1), tokens(1 + 2 ** 32));
  const random = new Sampler({ temperature: 1 });
  assert.deepEqual(
    Array.from({ length: 8 }, () => random.next(logits)),
    tokens(random.seed),
  );
});

Deno.test("greedy: the largest, ties by lower id", () => {
  fc.assert(fc.property(vocabulary, (logits) => {
    const best = new Sampler({ topK: 3, topP: 0.5 }).next(logits);
    assert.equal(best, logits.indexOf(Math.max(...logits)));
  }));
});

Deno.test("the largest of a vocabulary, wherever it and NaN stand", () => {
  const random = fc.array(fc.integer({ min: -8, max: 8 }), { minLength: 1, maxLength: 3000 });
  const places = fc.record({ at: fc.nat(), odd: fc.constantFrom(undefined, NaN, Infinity, -Infinity, -0) });
  fc.assert(fc.property(random, places, (values, { at, odd }) => {
    const logits = Float32Array.from(values);
    if (odd !== undefined) logits[at % logits.length] = odd;
    const usable = logits.every((logit) => logit < Infinity) && logits.some((logit) => logit > -Infinity);
    if (usable) assert.equal(largest(logits), logits.indexOf(logits.reduce((a, b) => Math.max(a, b))));
    else assert.throws(() => largest(logits), HcinferError);
  }));
});

Deno.test("penalties come first, and count what was sampled", () => {
  const logits = Float32Array.of(3, 2, 1);
  const tokens = (options: SamplerOptions, prompt: number[]) => {
    const sampler = new Sampler(options);
    sampler.begin(prompt);
    return Array.from({ length: 4 }, () => sampler.next(logits));
  };
  assert.deepEqual(tokens({ frequencyPenalty: 1.5 }, [0]), [0, 1, 0, 2]);
  assert.deepEqual(tokens({ presencePenalty: 1.5 }, [0]), [0, 1, 0, 0]);
  assert.deepEqual(tokens({ repetitionPenalty: 2 }, [0]), [1, 0, 0, 0]);
  assert.deepEqual(tokens({ repetitionPenalty: 2, temperature: 1, topK: 1 }, [0]), [1, 0, 0, 0]);
});

Deno.test("logits that are not numbers are an error", () => {
  for (const bad of [NaN, Infinity]) {
    for (const at of [0, 1, 2]) {
      const logits = Float32Array.of(5, 1, 9);
      logits[at] = bad;
      assert.throws(
        () => largest(logits),
        (error) => error instanceof HcinferError && /NaN|Infinity/.test(error.message),
      );
    }
  }
  for (const logits of [Float32Array.of(-Infinity), new Float32Array(0)]) {
    assert.throws(() => new Sampler({ temperature: 1 }).next(logits), HcinferError);
  }
});

Deno.test("options outside their range are refused", () => {
  const bad: readonly SamplerOptions[] = [
    { temperature: -1 },
    { temperature: NaN },
    { topK: 1.5 },
    { topK: -1 },
    { topP: 0 },
    { topP: 1.1 },
    { minP: -0.1 },
    { seed: -1 },
    { seed: 2 ** 60 },
    { repetitionPenalty: 0 },
    { frequencyPenalty: 2.1 },
    { presencePenalty: NaN },
  ];
  for (const options of bad) {
    assert.throws(
      () => new Sampler(options),
      (error) => error instanceof HcinferError && error.kind === "usage",
    );
  }
});

Deno.test("a vocabulary of 150,000 takes milliseconds", () => {
  const logits = Float32Array.from({ length: 150_000 }, (_, i) => Math.sin(i) * 10);
  const sampler = new Sampler({ temperature: 0.8, topP: 0.95, seed: 1 });
  const began = performance.now();
  for (let i = 0; i < 5; i++) sampler.next(logits);
  assert.ok(performance.now() - began < 2000);
});
