/** Rows beside factors: together they add the error once, and all of both come nearer than all of either. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CompileOptions } from "../../compiler/compile.ts";
import { logitsOf } from "../fixtures/steps.ts";
import { writeTinyModel } from "../fixtures/tiny_model.ts";
import type { StepKind } from "../../runtime/executor.ts";
import { createReferenceExecutor } from "../../runtime/executors/reference.ts";
import { relativeError, UNCOMPRESSED, withBundle } from "./reference_bundle.ts";

const TOKENS = Int32Array.from({ length: 24 }, (_, t) => (7 * t + 3) % 41);
const RANK = 8;
/** More than any window has. */
const ALL = 1000;

async function logits(model: string, options: Partial<CompileOptions>, as: StepKind): Promise<Float32Array> {
  let found: Float32Array = new Float32Array(0);
  await withBundle(model, { weights: "q2", group: 32, head: "bf16", ...options }, (bundle) => {
    using executor = createReferenceExecutor(bundle, { corrections: "inline" });
    found = logitsOf(executor, TOKENS, { as });
  });
  return found;
}

Deno.test("all rows beside factors are nearer to the uncompressed model than either alone", async () => {
  const model = mkdtempSync(join(tmpdir(), "hcinfer-both-"));
  try {
    writeTinyModel(model);
    const exact = await logits(model, UNCOMPRESSED, "prefill");
    for (const residualWidth of [2, 4] as const) {
      for (const as of ["prefill", "decode"] as const) {
        const error = async (options: Partial<CompileOptions>) =>
          relativeError(await logits(model, { residualWidth, ...options }, as), exact);
        const none = await error({ correct: "none" });
        const factors = await error({ correct: "low_rank", budget: { kind: "rank", rank: RANK } });
        const rows = await error({ correct: "sparse", budget: { kind: "channels", channels: ALL } });
        const both = await error({
          correct: "both",
          budget: { kind: "rank+channels", rank: RANK, channels: ALL },
        });
        const text =
          `${residualWidth} bits, ${as}: none ${none}, factors ${factors}, rows ${rows}, both ${both}`;
        assert.ok(factors < none && rows < factors && both < 0.9 * rows, text);
      }
    }
  } finally {
    rmSync(model, { recursive: true });
  }
});
