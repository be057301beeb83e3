/** The bundled model, a Qwen3 trained on English text: the cpu executor against transformers, and what corrections win. */
import assert from "node:assert/strict";
import { logitsOf } from "../fixtures/steps.ts";
import { createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import {
  referenceLogits,
  relativeError,
  sameArgMax,
  TINY_DENSE,
  UNCOMPRESSED,
  withBundle,
} from "../parity/reference_bundle.ts";
import { recovery } from "./recovery.ts";

/** Measured: 1e-4, keys and values in f16. */
const MOST_ERROR = 2e-2;
const LEAST_SAME = 0.99;
/** Of the KL that 3 bits lose, with a tenth of the backbone's bytes. Measured: see `deno task demo`. */
const LEAST_RECOVERED = 0.6;

Deno.test("tiny-dense: the cpu executor agrees with transformers", async () => {
  await withBundle(TINY_DENSE, UNCOMPRESSED, (bundle) => {
    for (const { tokens, logits } of referenceLogits(TINY_DENSE)) {
      using executor = createCpuExecutor(bundle, { threads: 2, corrections: "off", contextLength: 512 });
      const actual = logitsOf(executor, tokens);
      const error = relativeError(actual, logits);
      assert.ok(error < MOST_ERROR, `relative error ${error}`);
      assert.ok(sameArgMax(actual, logits, executor.model.vocabularySize) >= LEAST_SAME);
    }
  });
});

Deno.test("tiny-dense: sparse residuals of a tenth of the bytes win back most of what 3 bits lose", async () => {
  await withBundle(TINY_DENSE, UNCOMPRESSED, async (uncompressed) => {
    const budget = { kind: "bytes", share: 0.1 } as const;
    await withBundle(TINY_DENSE, { weights: "q3", correct: "sparse", budget }, async (quantized) => {
      const { lost, left, recovered } = await recovery(uncompressed, quantized, 8);
      assert.ok(recovered > LEAST_RECOVERED, `KL ${lost} without, ${left} with corrections: ${recovered}`);
    });
  });
});
