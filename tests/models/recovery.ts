/** How much of what quantisation loses corrections win back, measured as `hcinfer eval` does. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Bundle } from "../../compiler/bundle.ts";
import { tokenLoss } from "../../ffi/engine.ts";
import { evaluate, type Evaluation } from "../../runtime/evaluate.ts";
import type { CorrectionMode } from "../../runtime/executor.ts";
import { createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import { Tokenizer } from "../../runtime/tokenizer.ts";

const HELDOUT = fileURLToPath(new URL("../../examples/models/heldout.txt", import.meta.url));
const WINDOW = 256;

export interface Recovery {
  /** KL(uncompressed || quantised), nats a token, without and with corrections. */
  readonly lost: number;
  readonly left: number;
  /** Share of `lost` that corrections win back. */
  readonly recovered: number;
}

/** Over the first `windows` windows of the text no model was trained on. */
export async function recovery(
  uncompressed: Bundle,
  quantized: Bundle,
  windows: number,
): Promise<Recovery> {
  const tokenizer = Tokenizer.open(quantized, quantized.plan.model.vocabularySize);
  const text = readFileSync(HELDOUT, "utf8").slice(0, 8 * WINDOW * windows);
  const tokens = tokenizer.encode(text, { addSpecialTokens: false }).subarray(0, WINDOW * windows);
  if (tokens.length < WINDOW * windows) throw new Error(`the text has ${tokens.length} tokens`);
  const run = async (corrections: CorrectionMode): Promise<Evaluation> => {
    const options = { threads: 2, contextLength: WINDOW, capacity: WINDOW };
    using reference = createCpuExecutor(uncompressed, { ...options, corrections: "off" });
    using executor = createCpuExecutor(quantized, { ...options, corrections });
    const loss = (logits: Float32Array, other: Float32Array | undefined, target: number) =>
      tokenLoss(logits, target, other);
    return await evaluate(executor, { tokens, window: WINDOW, reference, tokenLoss: loss });
  };
  const lost = (await run("off")).divergence!, left = (await run("inline")).divergence!;
  return { lost, left, recovered: 1 - left / lost };
}
