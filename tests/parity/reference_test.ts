/** The reference executor against logits that another implementation computed from the same weights in float32. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { ReferenceExecutor } from "../../runtime/executors/reference.ts";
import { widen } from "../../compiler/weights/half.ts";
import { checkpointModel, readTensors } from "./reference_model.ts";

const here = fileURLToPath(new URL(".", import.meta.url));
const tinyDense = join(here, "../../examples/models/tiny-dense");
/** Made by ../shared/peers/gguf_to_hf.py; too large to be bundled. */
const smollm2 = process.env["HCINFER_SMOLLM2"] ?? "";

/** ||a - b|| / ||b|| */
function relativeError(a: ArrayLike<number>, b: Float32Array): number {
  let error = 0, energy = 0;
  for (let i = 0; i < b.length; i++) {
    error += (a[i]! - b[i]!) ** 2;
    energy += b[i]! ** 2;
  }
  return Math.sqrt(error / energy);
}

function argMax(row: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < row.length; i++) if (row[i]! > row[best]!) best = i;
  return best;
}

function compare(folder: string, prompts: readonly number[]): void {
  const tensors = readTensors(join(folder, "reference_logits.safetensors"));
  const model = checkpointModel(folder);
  const vocabulary = model.model.vocabularySize;
  for (const prompt of prompts) {
    const ids = tensors.get(`input_ids_${prompt}`)!.bytes;
    const tokens = Int32Array.from(new BigInt64Array(new Uint8Array(ids).buffer), Number);
    const expected = widen(tensors.get(`logits_${prompt}`)!.bytes, "F32");
    using executor = new ReferenceExecutor(model);
    const logits = executor.step({ tokens, position: 0, as: "prefill", logits: "all" });
    assert.equal(logits.length, expected.length);
    const error = relativeError(logits, expected);
    let same = 0;
    for (let t = 0; t < tokens.length; t++) {
      const row = (all: Float32Array) => all.subarray(t * vocabulary, (t + 1) * vocabulary);
      if (argMax(row(logits)) === argMax(row(expected))) same++;
    }
    console.log(
      `prompt ${prompt}: relative error ${error.toExponential(2)}, arg-max ${same}/${tokens.length}`,
    );
    assert.ok(error < 1e-3, `relative error ${error}`);
    assert.equal(same, tokens.length);
  }
}

Deno.test("tiny-dense: reference executor agrees with transformers", () => compare(tinyDense, [0, 1, 2, 3]));

Deno.test({
  name: "SmolLM2: reference executor agrees with transformers",
  ignore: !existsSync(join(smollm2, "model.safetensors")),
  fn: () => compare(smollm2, [0, 1]),
});
