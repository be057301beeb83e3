/**
 * A published model: run with HCINFER_SLOW_TESTS=1 and a Hugging Face folder of SmolLM2-135M-Instruct with its
 * reference logits, at HCINFER_SMOLLM2 or ../shared/models/smollm2-135m-instruct. Takes ten seconds.
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { logitsOf } from "../fixtures/steps.ts";
import { createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import {
  referenceLogits,
  relativeError,
  sameArgMax,
  UNCOMPRESSED,
  withBundle,
} from "../parity/reference_bundle.ts";
import { recovery } from "./recovery.ts";

const SHARED = new URL("../../../shared/models/smollm2-135m-instruct", import.meta.url);
const model = process.env["HCINFER_SMOLLM2"] || fileURLToPath(SHARED);
const ignore = process.env["HCINFER_SLOW_TESTS"] !== "1" || !existsSync(join(model, "model.safetensors"));

Deno.test({
  name:
    "SmolLM2: the cpu executor agrees with transformers; sparse residuals win back most of what 3 bits lose",
  ignore,
  fn: async () => {
    await withBundle(model, UNCOMPRESSED, async (uncompressed) => {
      for (const { tokens, logits } of referenceLogits(model)) {
        using executor = createCpuExecutor(uncompressed, {
          threads: 2,
          corrections: "off",
          contextLength: 512,
        });
        const actual = logitsOf(executor, tokens);
        const error = relativeError(actual, logits);
        assert.ok(error < 2e-2, `relative error ${error}`);
        assert.ok(sameArgMax(actual, logits, executor.model.vocabularySize) >= 0.99);
      }
      await withBundle(model, { weights: "q3", correct: "sparse" }, async (quantized) => {
        const { lost, left, recovered } = await recovery(uncompressed, quantized, 2);
        assert.ok(recovered > 0.6, `KL ${lost} without, ${left} with corrections: ${recovered}`);
      });
    });
  },
});
