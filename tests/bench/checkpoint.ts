/** Writes the benchmark's model as a Hugging Face folder: random bf16 weights, no tokenizer. */
import { closeSync, mkdirSync, openSync, renameSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { layoutSafetensors } from "../../compiler/weights/safetensors.ts";
import { matrices, randomBits, SHAPE, vectors } from "./shape.ts";

const ONE_BF16 = 0x3f80;

const CONFIG = {
  architectures: ["Qwen3ForCausalLM"],
  model_type: "qwen3",
  hidden_size: SHAPE.hidden,
  num_hidden_layers: SHAPE.layers,
  num_attention_heads: SHAPE.heads,
  num_key_value_heads: SHAPE.kvHeads,
  head_dim: SHAPE.headDim,
  intermediate_size: SHAPE.ffn,
  vocab_size: SHAPE.vocabulary,
  max_position_embeddings: SHAPE.context,
  rope_theta: SHAPE.ropeTheta,
  rms_norm_eps: SHAPE.rmsNormEps,
  hidden_act: "silu",
  attention_bias: false,
  tie_word_embeddings: true,
  bos_token_id: SHAPE.vocabulary - 2,
  eos_token_id: SHAPE.vocabulary - 1,
  torch_dtype: "bfloat16",
};

/** Uniform bf16 numbers with a standard deviation near 0.02. */
function randomMatrix(count: number, seed: number): Uint8Array {
  const bits = new Uint32Array(count);
  randomBits(bits, seed);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = (bits[i]! / 2 ** 32 - 0.5) * 0.07;
  const rounded = new Uint32Array(values.buffer);
  const halves = new Uint16Array(count);
  for (let i = 0; i < count; i++) halves[i] = rounded[i]! >>> 16;
  return new Uint8Array(halves.buffer);
}

/** Writes the folder; what was there before is replaced only when it is complete. */
export function writeCheckpoint(folder: string): void {
  const partial = `${folder}.tmp`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  writeFileSync(join(partial, "config.json"), JSON.stringify(CONFIG, null, 2));
  const tensors = [
    ...matrices().map((m, i) => ({
      spec: { name: m.name, dtype: "BF16" as const, shape: [m.rows, m.columns] },
      make: () => randomMatrix(m.rows * m.columns, i + 1),
    })),
    ...vectors().map((v) => ({
      spec: { name: v.name, dtype: "BF16" as const, shape: [v.length] },
      make: () => new Uint8Array(new Uint16Array(v.length).fill(ONE_BF16).buffer),
    })),
  ];
  const layout = layoutSafetensors(tensors.map((tensor) => tensor.spec));
  const file = openSync(join(partial, "model.safetensors"), "w");
  writeSync(file, layout.header, 0, layout.header.length, 0);
  for (const { spec, make } of tensors) {
    const bytes = make();
    writeSync(file, bytes, 0, bytes.length, layout.ranges.get(spec.name)!.offset);
  }
  closeSync(file);
  rmSync(folder, { recursive: true, force: true });
  renameSync(partial, folder);
}
