import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import { HcinferError } from "../errors.ts";
import { type Graph, ropeTable, values } from "../ir/graph.ts";
import type { Op } from "../ir/ops.ts";
import { printGraph } from "../ir/text.ts";
import { typeText } from "../ir/types.ts";
import {
  LLAMA,
  model,
  QWEN3,
  trace,
  traceArchitecture,
  traceDescription,
} from "../../tests/models/descriptions.ts";
import { architectureFile, type Config } from "./trace.ts";

function counts(graph: Graph): Partial<Record<Op, number>> {
  const found: Partial<Record<Op, number>> = {};
  for (const { op } of graph.nodes) found[op] = (found[op] ?? 0) + 1;
  return found;
}

/** Every checkpoint tensor of a graph with its shape. */
function tensors(graph: Graph): Map<string, string> {
  const types = values(graph);
  const width = (name: string | undefined) => String(types.get(name ?? "")?.type.shape.at(-1));
  const found = new Map<string, string>();
  for (const node of graph.nodes) {
    if (node.op === "embedding") found.set(node.params.path, `${node.params.rows}x${node.params.width}`);
    if (node.op === "rms_norm") found.set(node.params.path, width(node.inputs[0]));
    if (node.op === "linear") {
      for (const { path, outputs } of node.params.weights) {
        found.set(path, `${outputs}x${width(node.inputs[0])}`);
      }
    }
  }
  return found;
}

// UPDATE_GOLDEN=1 rewrites it. The golden graph of qwen3 is beside it, after every pass.
Deno.test("golden: llama as traced", async () => {
  const printed = printGraph(await traceArchitecture(LLAMA));
  const file = new URL("../../tests/golden/llama.traced.py", import.meta.url);
  if (process.env["UPDATE_GOLDEN"]) writeFileSync(file, printed);
  assert.equal(printed, readFileSync(file, "utf8"));
});

Deno.test("qwen3: nodes, tensors and shapes of the bundled model", async () => {
  const graph = await traceArchitecture({ ...QWEN3, num_hidden_layers: 8 });
  assert.equal(graph.stage, "traced");
  assert.equal(graph.architecture, "qwen3");
  assert.deepEqual(counts(graph), {
    embedding: 1,
    rms_norm: 4 * 8 + 1,
    linear: 7 * 8 + 1,
    split_heads: 3 * 8,
    merge_heads: 8,
    rope: 2 * 8,
    attention: 8,
    silu: 8,
    mul: 8,
    add: 2 * 8,
  });
  const found = tensors(graph);
  // Seven matrices and four norms a layer, the tied embedding and the last norm.
  assert.equal(found.size, 11 * 8 + 2);
  assert.equal(found.get("model.embed_tokens"), "4096x256");
  assert.equal(found.get("model.layers.3.self_attn.q_proj"), "256x256");
  assert.equal(found.get("model.layers.3.self_attn.k_proj"), "128x256");
  assert.equal(found.get("model.layers.7.self_attn.k_norm"), "32");
  assert.equal(found.get("model.layers.7.mlp.down_proj"), "256x768");
  assert.equal(found.get("model.norm"), "256");
  const [logits] = graph.outputs;
  assert.equal(typeText(values(graph).get(logits ?? "")!.type), "[T,4096] f32");
  const layers = graph.nodes.flatMap((n) => n.op === "attention" ? [n.params.layer] : []);
  assert.deepEqual(layers, [0, 1, 2, 3, 4, 5, 6, 7]);
});

Deno.test("llama: no head norms; head size, key-value heads and theta have defaults", async () => {
  const { head_dim: _, num_key_value_heads: __, rope_theta: ___, ...older } = LLAMA;
  const graph = await traceArchitecture(older);
  const found = tensors(graph);
  assert.equal(found.get("model.layers.1.self_attn.k_proj"), "576x576");
  assert.ok(![...found.keys()].some((path) => path.endsWith("q_norm")));
  assert.ok(
    graph.nodes.some((n) =>
      n.op === "rope" && ropeTable(graph, n.params.table).frequencies[1] === 10000 ** (-2 / 64)
    ),
  );
});

Deno.test("an untied head is lm_head; newer configs keep theta in rope_parameters", async () => {
  const { rope_theta: _, ...config } = QWEN3;
  const graph = await traceArchitecture({
    ...config,
    tie_word_embeddings: false,
    rope_parameters: { rope_type: "default", rope_theta: 1e6 },
  });
  assert.equal(tensors(graph).get("lm_head"), "4096x256");
  assert.ok(
    graph.nodes.every((n) =>
      n.op !== "rope" || ropeTable(graph, n.params.table).frequencies[1] === 1e6 ** (-2 / 32)
    ),
  );
});

const REFUSED: readonly [Config, RegExp][] = [
  [{ ...QWEN3, hidden_act: "gelu" }, /accepted as hidden_act: "silu"[^]*config.json has hidden_act = "gelu"/],
  [{ ...QWEN3, attention_bias: true }, /biases[^]*attention_bias = true/],
  [{ ...LLAMA, mlp_bias: true }, /biases[^]*mlp_bias = true/],
  [{ ...QWEN3, use_sliding_window: true }, /sliding-window/],
  [{ ...LLAMA, sliding_window: 512 }, /sliding-window[^]*sliding_window = 512/],
  [{ ...LLAMA, mlp_bias: true, hidden_act: "relu" }, /activation[^]*biases/],
  [
    { ...LLAMA, rope_scaling: { rope_type: "dynamic", factor: 8 } },
    /this rope_type is not supported; accepted: "default", "linear", "llama3", "yarn"[^]*rope_scaling.rope_type = "dynamic"/,
  ],
  [{ ...QWEN3, rope_parameters: { rope_type: "longrope" } }, /rope_parameters.rope_type = "longrope"/],
  [{ ...QWEN3, rope_scaling: { type: "su" } }, /rope_scaling.type = "su"/],
  [
    { ...LLAMA, rope_scaling: { rope_type: "llama3", factor: 8 } },
    /rope_scaling of config.json has no field "low_/,
  ],
  [{ ...LLAMA, rope_scaling: { type: "linear" } }, /rope_scaling of config.json has no field "factor"/],
  [{ ...LLAMA, rope_scaling: { type: "linear", factor: 0 } }, /division of 1 by zero/],
  [{ ...LLAMA, rope_theta: -5 }, /no finite number/],
  [
    { ...LLAMA, partial_rotary_factor: 0.5 },
    /accepted as partial_rotary_factor: 1[^]*partial_rotary_factor = 0.5/,
  ],
  [{ ...LLAMA, rope_parameters: { full_attention: {} } }, /differ by layer/],
  [{ ...QWEN3, hidden_size: undefined }, /must be a whole number/],
  [{ ...QWEN3, hidden_size: "256" }, /found the string "256"/],
  [{ ...QWEN3, hidden_size: 1e300 }, /a whole number/],
  [{ ...QWEN3, num_attention_heads: 0, head_dim: null }, /division of 256 by zero/],
  [{ ...QWEN3, num_attention_heads: -8 }, /a whole number from 1/],
  [{ ...QWEN3, num_key_value_heads: 3 }, /multiple of key heads/],
  [{ ...QWEN3, head_dim: 31, num_attention_heads: 8 }, /must be even/],
  [{ ...QWEN3, num_hidden_layers: 1e9 }, /too long to go through/],
  [{ ...QWEN3, num_hidden_layers: [] }, /range: start must be a whole number/],
  [{ ...QWEN3, rms_norm_eps: -1 }, /finite number above 0/],
  [{ model_type: "qwen3" }, /has no field "num_hidden_layers"/],
  [{ ...QWEN3, hidden_act: undefined }, /hidden_act: "silu"[^]*hidden_act = null/],
];
for (const [config, expected] of REFUSED) {
  Deno.test(`a config is refused with ${expected}`, async () => {
    await assert.rejects(traceArchitecture(config), (error: unknown) => {
      assert.ok(error instanceof HcinferError);
      assert.match(error.message, expected);
      return true;
    });
  });
}

Deno.test("olmo2: norms over all columns before the heads are split, and norms behind blocks", async () => {
  const graph = await traceDescription("olmo2");
  const layer = graph.nodes.slice(1, 20).map((n) => n.op).join(" ");
  assert.equal(
    layer,
    "linear rms_norm split_heads linear rms_norm split_heads linear split_heads rope rope attention merge_heads linear " +
      "rms_norm add linear linear silu mul",
  );
  const found = tensors(graph);
  assert.equal(found.get("model.layers.0.self_attn.q_norm"), "256");
  assert.equal(found.get("model.layers.0.self_attn.k_norm"), "128");
  assert.equal(found.get("model.layers.1.post_feedforward_layernorm"), "256");
});

Deno.test("hunyuan: norms of heads behind rope", async () => {
  const graph = await traceDescription("hunyuan", LLAMA);
  const makers = new Map(graph.nodes.map((n) => [n.outputs[0]?.name, n]));
  const attention = graph.nodes.find((n) => n.op === "attention");
  for (const name of attention?.inputs.slice(0, 2) ?? []) {
    const norm = makers.get(name);
    assert.equal(norm?.op, "rms_norm");
    assert.equal(makers.get(norm?.inputs[0])?.op, "rope");
  }
  assert.equal(tensors(graph).get("model.layers.1.self_attn.key_layernorm"), "64");
});

Deno.test("an unknown architecture lists the known ones", () => {
  for (const type of ["qwen3_moe", "../qwen3", "", "qwen3.py", "decoder", "shared/decoder", "shared"]) {
    assert.throws(() => architectureFile(type), /Known: llama, qwen3\./);
  }
});

Deno.test("values of the graph are called after the variables of the description", async () => {
  const graph = await trace(
    model(
      "self.a = Linear(8, 8)",
      "hidden, gate = self.embed(tokens), 3\nlogits = self.a(silu(hidden))\nreturn logits",
    ),
  );
  assert.deepEqual(graph.nodes.map((n) => n.outputs[0]?.name), ["hidden", "logits", "logits1"]);
});

Deno.test("paths: lists by index, the first attribute that holds a module names it", async () => {
  const init = `shared = Linear(8, 8)
self.first = shared
self.second = shared
self.pairs = [(Linear(8, 8), Linear(8, 8)) for _ in range(2)]`;
  const forward = `x = self.second(self.embed(tokens))
for i, (a, b) in enumerate(self.pairs):
    x = b(a(x)) if i > 0 else a(x)
return x`;
  const graph = await trace(model(init, forward));
  assert.deepEqual([...tensors(graph).keys()], ["embed", "first", "pairs.0.0", "pairs.1.0", "pairs.1.1"]);
});
