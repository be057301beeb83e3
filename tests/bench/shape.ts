/**
 * The model both sides of the benchmark run: the shape of Qwen3-0.6B with a vocabulary of 32,000 and random weights
 * (speed does not depend on the values).
 */
export const SHAPE = {
  hidden: 1024,
  layers: 28,
  heads: 16,
  kvHeads: 8,
  headDim: 128,
  ffn: 3072,
  vocabulary: 32_000,
  context: 4096,
  ropeTheta: 1e6,
  rmsNormEps: 1e-6,
} as const;

export interface Matrix {
  /** Names in a Hugging Face checkpoint and in a GGUF file. */
  readonly name: string;
  readonly gguf: string;
  readonly rows: number;
  readonly columns: number;
}

export interface Vector {
  readonly name: string;
  readonly gguf: string;
  readonly length: number;
}

/** Every matrix: the embedding (tied to the output head) first, then layer by layer. */
export function matrices(): Matrix[] {
  const { hidden, heads, kvHeads, headDim, ffn, vocabulary, layers } = SHAPE;
  const all: Matrix[] = [
    { name: "model.embed_tokens.weight", gguf: "token_embd.weight", rows: vocabulary, columns: hidden },
  ];
  for (let layer = 0; layer < layers; layer++) {
    const add = (name: string, gguf: string, rows: number, columns: number) =>
      all.push({
        name: `model.layers.${layer}.${name}.weight`,
        gguf: `blk.${layer}.${gguf}.weight`,
        rows,
        columns,
      });
    add("self_attn.q_proj", "attn_q", heads * headDim, hidden);
    add("self_attn.k_proj", "attn_k", kvHeads * headDim, hidden);
    add("self_attn.v_proj", "attn_v", kvHeads * headDim, hidden);
    add("self_attn.o_proj", "attn_output", hidden, heads * headDim);
    add("mlp.gate_proj", "ffn_gate", ffn, hidden);
    add("mlp.up_proj", "ffn_up", ffn, hidden);
    add("mlp.down_proj", "ffn_down", hidden, ffn);
  }
  return all;
}

/** Every norm's vector, all ones. */
export function vectors(): Vector[] {
  const { hidden, headDim, layers } = SHAPE;
  const all: Vector[] = [];
  for (let layer = 0; layer < layers; layer++) {
    const add = (name: string, gguf: string, length: number) =>
      all.push({ name: `model.layers.${layer}.${name}.weight`, gguf: `blk.${layer}.${gguf}.weight`, length });
    add("input_layernorm", "attn_norm", hidden);
    add("post_attention_layernorm", "ffn_norm", hidden);
    add("self_attn.q_norm", "attn_q_norm", headDim);
    add("self_attn.k_norm", "attn_k_norm", headDim);
  }
  all.push({ name: "model.norm.weight", gguf: "output_norm.weight", length: hidden });
  return all;
}

/** xorshift32: fills `words` with pseudo-random bits. */
export function randomBits(words: Uint32Array, seed: number): void {
  let state = (seed * 0x9e3779b9 + 1) >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
}

export { cacheFolder } from "../../examples/study/llama_install.ts";
