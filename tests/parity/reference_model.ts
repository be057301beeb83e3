/** Models for the reference executor straight from a Hugging Face folder: no compiler, no bundle, no rounding. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { GraphBuilder } from "../../compiler/ir/build.ts";
import type { Graph, Value } from "../../compiler/ir/graph.ts";
import { tensor } from "../../compiler/ir/types.ts";
import { type Config, parseConfig, parseTokenEnds } from "../../compiler/weights/config.ts";
import { widen } from "../../compiler/weights/half.ts";
import { readSafetensors, type TensorView } from "../../compiler/weights/safetensors.ts";
import type { Numbers } from "../../runtime/executors/reference_numbers.ts";
import type { ReferenceModel } from "../../runtime/executors/reference.ts";

export function readTensors(file: string): ReadonlyMap<string, TensorView> {
  return readSafetensors(readFileSync(file), file).tensors;
}

/** The Llama decoder, with norms on queries and keys where the checkpoint is a Qwen3. */
function decoder(config: Config): Graph {
  const build = new GraphBuilder(config.model_type);
  const tokens = build.input("tokens", tensor("i32", "T"));
  const positions = build.input("positions", tensor("i32", "T"));
  const { hidden_size: width, head_dim: headDim, vocab_size: rows, rms_norm_eps: epsilon } = config;
  const linear = (x: Value, path: string, outputs: number) =>
    build.node("linear", [x], { weights: [{ path, outputs }] })[0]!;
  const norm = (x: Value, path: string) => build.node("rms_norm", [x], { path, epsilon })[0]!;
  let x = build.node("embedding", [tokens], { path: "model.embed_tokens", rows, width })[0]!;
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const path = `model.layers.${layer}`;
    const h = norm(x, `${path}.input_layernorm`);
    const heads = (name: string, count: number) => {
      const y = linear(h, `${path}.self_attn.${name}_proj`, count * headDim);
      return build.node("split_heads", [y], { headDim })[0]!;
    };
    const turned = (name: string, count: number) => {
      const y = heads(name, count);
      const normed = config.model_type === "qwen3" ? norm(y, `${path}.self_attn.${name}_norm`) : y;
      return build.node("rope", [normed, positions], { theta: config.rope_theta })[0]!;
    };
    const q = turned("q", config.num_attention_heads);
    const k = turned("k", config.num_key_value_heads);
    const v = heads("v", config.num_key_value_heads);
    const a = build.node("attention", [q, k, v, positions], { layer, scale: headDim ** -0.5 })[0]!;
    const o = linear(build.node("merge_heads", [a], {})[0]!, `${path}.self_attn.o_proj`, width);
    x = build.node("add", [x, o], {})[0]!;
    const g = norm(x, `${path}.post_attention_layernorm`);
    const gate = build.node("silu", [linear(g, `${path}.mlp.gate_proj`, config.intermediate_size)], {})[0]!;
    const up = linear(g, `${path}.mlp.up_proj`, config.intermediate_size);
    const inner = build.node("mul", [gate, up], {})[0]!;
    x = build.node("add", [x, linear(inner, `${path}.mlp.down_proj`, width)], {})[0]!;
  }
  const head = config.tie_word_embeddings ? "model.embed_tokens" : "lm_head";
  return build.finish([linear(norm(x, "model.norm"), head, rows)], "traced");
}

export function checkpointModel(folder: string): ReferenceModel {
  const file = join(folder, "config.json");
  const config = parseConfig(readFileSync(file, "utf8"), file);
  const generation = join(folder, "generation_config.json");
  const text = existsSync(generation) ? readFileSync(generation, "utf8") : undefined;
  const ends = parseTokenEnds(config, text, generation);
  const tensors = readTensors(join(folder, "model.safetensors"));
  const decoded = new Map<string, Float64Array>();
  const read = (path: string) => {
    const known = decoded.get(path);
    if (known) return known;
    const { bytes, dtype } = tensors.get(`${path}.weight`)!;
    const numbers = Float64Array.from(widen(bytes, dtype as "BF16"));
    decoded.set(path, numbers);
    return numbers;
  };
  const none = () => {
    throw new Error("a checkpoint has no corrections");
  };
  const numbers: Numbers = { matrix: read, vector: read, residual: none, factors: none };
  return {
    graph: decoder(config),
    numbers,
    model: {
      architecture: config.model_type,
      name: folder,
      hiddenSize: config.hidden_size,
      layers: config.num_hidden_layers,
      heads: config.num_attention_heads,
      kvHeads: config.num_key_value_heads,
      headDim: config.head_dim,
      vocabularySize: config.vocab_size,
      contextLength: config.max_position_embeddings,
      stopTokens: [...ends.stopTokens],
      bosToken: ends.bosToken,
      parameters: 1,
    },
  };
}
