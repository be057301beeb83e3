import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../compiler/errors.ts";
import { evaluate, lossOfToken } from "./evaluate.ts";
import { checkStep, type Executor, logitRows, type StepRequest } from "./executor.ts";

const VOCABULARY = 8;

/** Logits that depend on the token, its position and a seed: enough to tell every mistake of order apart. */
function executorOf(seed: number, capacity: number, contextLength = 64): Executor & { asked: StepRequest[] } {
  const model = {
    architecture: "none",
    name: `random ${seed}`,
    hiddenSize: 1,
    layers: 1,
    heads: 1,
    kvHeads: 1,
    headDim: 2,
    vocabularySize: VOCABULARY,
    contextLength,
    stopTokens: [],
    bosToken: null,
    parameters: 1,
  };
  const asked: StepRequest[] = [];
  let cached = 0;
  return {
    name: "random",
    model,
    capacity,
    contextLength,
    asked,
    step(request) {
      checkStep({ model, capacity, contextLength }, request, cached);
      asked.push(request);
      cached = request.position + request.tokens.length;
      assert.equal(logitRows(request), request.tokens.length);
      return Float32Array.from({ length: logitRows(request) * VOCABULARY }, (_, i) => {
        const t = Math.floor(i / VOCABULARY);
        return logitAt(seed, request.tokens[t]!, request.position + t, i % VOCABULARY);
      });
    },
    [Symbol.dispose]() {},
  };
}

function logitAt(seed: number, token: number, position: number, id: number): number {
  return Math.fround(3 * Math.sin(seed + 7 * token + 3 * position + id * id));
}

function softmax(seed: number, token: number, position: number): number[] {
  const weights = Array.from(
    { length: VOCABULARY },
    (_, id) => Math.exp(logitAt(seed, token, position, id)),
  );
  const total = weights.reduce((a, b) => a + b);
  return weights.map((w) => w / total);
}

Deno.test("perplexity and divergence are those of the definition, for every capacity", () => {
  const texts = fc.array(fc.integer({ min: 0, max: VOCABULARY - 1 }), { minLength: 2, maxLength: 40 });
  fc.assert(
    fc.property(texts, fc.integer({ min: 2, max: 20 }), fc.integer({ min: 1, max: 9 }), (text, window, n) => {
      const tokens = Int32Array.from(text);
      let nll = 0, kl = 0, predictions = 0, windows = 0;
      for (let start = 0; start + 1 < text.length; start += window) {
        const part = text.slice(start, start + window);
        windows++;
        for (let i = 0; i + 1 < part.length; i++) {
          const p = softmax(2, part[i]!, i), q = softmax(1, part[i]!, i);
          nll -= Math.log(q[part[i + 1]!]!);
          kl += p.reduce((sum, pi, id) => sum + pi * Math.log(pi / q[id]!), 0);
          predictions++;
        }
      }
      const progress: number[] = [];
      const model = executorOf(1, n);
      const result = evaluate(model, {
        tokens,
        window,
        reference: executorOf(2, 5),
        onProgress: (done) => progress.push(done),
      });
      assert.equal(result.windows, windows);
      assert.equal(result.predictions, predictions);
      assert.equal(progress.length, windows);
      assert.ok(Math.abs(result.perplexity - Math.exp(nll / predictions)) < 1e-9);
      assert.ok(Math.abs(result.divergence! - kl / predictions) < 1e-9);
      assert.ok(model.asked.every((r) => r.as === "decode"));
    }),
  );
});

Deno.test("without a reference there is no divergence; `as` reaches the executor", () => {
  const model = executorOf(1, 4);
  const result = evaluate(model, { tokens: Int32Array.of(1, 2, 3), as: "prefill" });
  assert.equal(result.divergence, undefined);
  assert.ok(model.asked.every((r) => r.as === "prefill"));
  const same = evaluate(model, { tokens: Int32Array.of(1, 2, 3), reference: executorOf(1, 4) });
  assert.equal(same.divergence, 0);
});

Deno.test("loss of one token at the edges", () => {
  assert.equal(lossOfToken(Float32Array.of(0, -Infinity), undefined, 0).nll, 0);
  assert.equal(lossOfToken(Float32Array.of(0, -Infinity), undefined, 1).nll, Infinity);
  // Large logits do not overflow; a token without probability in the reference does not count.
  const { nll, kl } = lossOfToken(Float32Array.of(1e38, 1e38), Float32Array.of(0, -Infinity), 0);
  assert.equal(nll, Math.LN2);
  assert.ok(Math.abs(kl - Math.LN2) < 1e-12);
  assert.ok(Number.isNaN(lossOfToken(Float32Array.of(NaN, 0), undefined, 1).nll));
});

Deno.test("what cannot be evaluated is refused", () => {
  const refused = (error: unknown) => error instanceof HcinferError;
  const model = executorOf(1, 4, 16);
  const tokens = new Int32Array(40);
  assert.throws(() => evaluate(model, { tokens: Int32Array.of(1) }), refused);
  assert.throws(() => evaluate(model, { tokens, window: 1 }), refused);
  assert.throws(() => evaluate(model, { tokens, window: 18 }), /context of 16/);
  assert.equal(evaluate(model, { tokens, window: 17 }).windows, 3);
  const nan = { ...model, step: (r: StepRequest) => model.step(r).fill(NaN) };
  assert.throws(() => evaluate(nan, { tokens, window: 8 }), refused);
});
