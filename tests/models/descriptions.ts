/** Configs, descriptions and what traces them, for tests. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { HcinferError } from "../../compiler/errors.ts";
import { architectureFile, type Config, traceModel } from "../../compiler/frontend/trace.ts";
import type { Graph } from "../../compiler/ir/graph.ts";

/** The shape of the bundled model tiny-dense, with two layers. */
export const QWEN3: Config = {
  model_type: "qwen3",
  vocab_size: 4096,
  hidden_size: 256,
  intermediate_size: 768,
  num_hidden_layers: 2,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  head_dim: 32,
  hidden_act: "silu",
  max_position_embeddings: 1024,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  rope_scaling: null,
  attention_bias: false,
  tie_word_embeddings: true,
  use_sliding_window: false,
  sliding_window: null,
};

/** The shape of SmolLM2-135M, with two layers. */
export const LLAMA: Config = {
  model_type: "llama",
  vocab_size: 49152,
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 2,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  head_dim: 64,
  hidden_act: "silu",
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-5,
  rope_theta: 100000,
  tie_word_embeddings: true,
  attention_bias: false,
  mlp_bias: false,
};

/** Traces the description of an architecture of graphs/, which `model_type` names. */
export function traceArchitecture(config: Config): Promise<Graph> {
  return traceFile(architectureFile(String(config["model_type"])), config);
}

/**
 * Traces descriptions/<name>.py: architectures that graphs/ does not have, with ops in orders of their own. Any config of
 * the two above fits them.
 */
export function traceDescription(name: "olmo2" | "hunyuan", config: Config = QWEN3): Promise<Graph> {
  return traceFile(fileURLToPath(new URL(`descriptions/${name}.py`, import.meta.url)), config);
}

function traceFile(file: string, config: Config): Promise<Graph> {
  return traceModel({ source: readFileSync(file, "utf8"), file, config });
}

export function trace(source: string, config: Config = QWEN3): Promise<Graph> {
  return traceModel({ source, file: "model.py", config });
}

/** A model whose `__init__` and `forward` have these bodies, after `definitions`. Line 2 of `init` is line 1 of it. */
export function model(init: string, forward = "return self.embed(tokens)", definitions = ""): string {
  const indented = (body: string) => body.split("\n").map((line) => `        ${line}`).join("\n");
  return `${definitions}
class Tiny(Module):
    def __init__(self, config):
        self.embed = Embedding(16, 8)
${indented(init)}

    def forward(self, tokens, positions):
${indented(forward)}
`;
}

/** The message of the HcinferError that tracing throws. */
export async function messageOf(source: string, config: Config = QWEN3): Promise<string> {
  try {
    await trace(source, config);
  } catch (error) {
    assert.ok(error instanceof HcinferError, `expected HcinferError, found ${error}`);
    assert.equal(error.kind, "model-description");
    return error.message;
  }
  assert.fail("expected diagnostics, found a graph");
}

/** Places and first lines of all diagnostics: `3:5 message`. */
export async function errorsOf(source: string, config: Config = QWEN3): Promise<string[]> {
  const message = await messageOf(source, config);
  return [...message.matchAll(/^model\.py:(\d+:\d+): error: (.*)$/gm)].map((m) => `${m[1]} ${m[2]}`);
}
