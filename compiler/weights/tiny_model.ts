/** A model of a few thousand random weights as a Hugging Face folder: for tests that need a checkpoint of their own. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { toBF16 } from "./half.ts";
import { layoutSafetensors, type TensorSpec } from "./safetensors.ts";

export interface TinyModel {
  readonly architecture?: "llama" | "qwen3";
  readonly layers?: number;
  readonly hidden?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly inner?: number;
  readonly vocabulary?: number;
  readonly tied?: boolean;
  readonly dtype?: "BF16" | "F32";
  readonly seed?: number;
  /** Changes a tensor's values before they are written. */
  readonly edit?: (name: string, values: Float32Array) => void;
}

/**
 * Writes a model to `folder`: by default a Llama of 2 layers (width 50, 3 heads of 12 on 1 key-value head, 90 inner,
 * 41 tokens), in which no width is a multiple of 16, so that every padding is exercised.
 */
export function writeTinyModel(folder: string, options: TinyModel = {}): void {
  const { architecture = "llama", layers = 2, tied = false, dtype = "BF16", seed = 1, edit = () => {} } =
    options;
  const { hidden = 50, heads = 3, kvHeads = 1, headDim = 12, inner = 90, vocabulary = 41 } = options;
  mkdirSync(folder, { recursive: true });
  const config = {
    model_type: architecture,
    hidden_size: hidden,
    intermediate_size: inner,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    vocab_size: vocabulary,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-5,
    hidden_act: "silu",
    tie_word_embeddings: tied,
    eos_token_id: 2,
  };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));

  const specs: TensorSpec[] = [];
  const add = (path: string, ...shape: number[]) => specs.push({ name: `${path}.weight`, dtype, shape });
  add("model.embed_tokens", vocabulary, hidden);
  for (let layer = 0; layer < layers; layer++) {
    const at = `model.layers.${layer}`;
    add(`${at}.input_layernorm`, hidden);
    add(`${at}.self_attn.q_proj`, heads * headDim, hidden);
    add(`${at}.self_attn.k_proj`, kvHeads * headDim, hidden);
    add(`${at}.self_attn.v_proj`, kvHeads * headDim, hidden);
    if (architecture === "qwen3") {
      add(`${at}.self_attn.q_norm`, headDim);
      add(`${at}.self_attn.k_norm`, headDim);
    }
    add(`${at}.self_attn.o_proj`, hidden, heads * headDim);
    add(`${at}.post_attention_layernorm`, hidden);
    add(`${at}.mlp.gate_proj`, inner, hidden);
    add(`${at}.mlp.up_proj`, inner, hidden);
    add(`${at}.mlp.down_proj`, hidden, inner);
  }
  add("model.norm", hidden);
  if (!tied) add("lm_head", vocabulary, hidden);

  const { header, ranges, fileBytes } = layoutSafetensors(specs, { format: "pt" }, 2);
  const bytes = new Uint8Array(fileBytes);
  bytes.set(header);
  const view = new DataView(bytes.buffer);
  let state = seed;
  const random = () => { // Lehmer's generator; the sum of four uniforms is normal enough
    state = state * 48271 % 0x7fffffff;
    return state / 0x7fffffff - 0.5;
  };
  for (const { name, shape } of specs) {
    const norm = shape.length === 1;
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => {
      const r = random() + random() + random() + random();
      return norm ? 1 + 0.1 * r : 0.2 * r;
    });
    edit(name, values);
    const offset = ranges.get(name)?.offset ?? 0;
    values.forEach((v, i) => {
      if (dtype === "F32") view.setFloat32(offset + 4 * i, v, true);
      else view.setUint16(offset + 2 * i, toBF16(v), true);
    });
  }
  writeFileSync(join(folder, "model.safetensors"), bytes);
}
