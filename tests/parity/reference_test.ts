/** The reference executor against transformers, and against itself with the tokens cut otherwise. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import fc from "fast-check";
import type { StepKind } from "../../runtime/executor.ts";
import { logitsOf, stepOne } from "../fixtures/steps.ts";
import { createReferenceExecutor } from "../../runtime/executors/reference.ts";
import {
  referenceLogits,
  relativeError,
  sameArgMax,
  TINY_DENSE,
  UNCOMPRESSED,
  withBundle,
} from "./reference_bundle.ts";

/** Measured: 3e-7 on tiny-dense, 2e-6 on SmolLM2, the rounding of the float32 logits compared with. */
const MOST_ERROR = 1e-5;

async function agreesWithTransformers(model: string): Promise<void> {
  await withBundle(model, UNCOMPRESSED, (bundle) => {
    for (const { tokens, logits } of referenceLogits(model)) {
      using executor = createReferenceExecutor(bundle);
      const actual = logitsOf(executor, tokens, { as: "prefill" });
      const error = relativeError(actual, logits);
      assert.ok(error < MOST_ERROR, `relative error ${error}`);
      assert.equal(sameArgMax(actual, logits, executor.model.vocabularySize), 1);
    }
  });
}

Deno.test("tiny-dense: the reference executor agrees with transformers", () => {
  return agreesWithTransformers(TINY_DENSE);
});

/** A Hugging Face folder of SmolLM2-135M-Instruct with its reference logits; too large to be bundled. */
const smollm2 = process.env["HCINFER_SMOLLM2"] ?? "";

Deno.test({
  name: "SmolLM2: the reference executor agrees with transformers",
  ignore: !existsSync(join(smollm2, "model.safetensors")),
  fn: () => agreesWithTransformers(smollm2),
});

Deno.test("logits are the same bits however tokens are cut into steps", async () => {
  await withBundle(TINY_DENSE, { weights: "q3" }, (bundle) => {
    const tokens = Int32Array.of(46, 812, 99, 3071, 7, 410, 1544);
    const kinds: StepKind[] = ["prefill", "prefill", "prefill", "prefill", "decode", "decode", "decode"];
    const vocabulary = bundle.plan.model.vocabularySize;
    using executor = createReferenceExecutor(bundle);
    using sequence = executor.sequence();
    const single = Array.from(
      tokens,
      (token, t) => stepOne(executor, sequence, [token], { as: kinds[t]! }),
    );
    const cuts = fc.array(fc.boolean(), { minLength: tokens.length, maxLength: tokens.length });
    fc.assert(
      fc.property(cuts, (cuts) => {
        for (let start = 0, end = 1; start < tokens.length; start = end++) {
          while (end < tokens.length && kinds[end] === kinds[start] && !cuts[end]) end++;
          const step = tokens.subarray(start, end);
          const logits = stepOne(executor, sequence, step, { position: start, as: kinds[start]! });
          for (let t = start; t < end; t++) {
            const row = logits.subarray((t - start) * vocabulary, (t - start + 1) * vocabulary);
            assert.ok(row.every((logit, i) => logit === single[t]![i]), `token ${t} of ${start}..${end}`);
          }
        }
      }),
      { numRuns: 8 },
    );
  });
});
