import assert from "node:assert/strict";
import { onDevices, passes, tinyPlan } from "../tests/fixtures/passes.ts";
import { TINY, transformer } from "./ir/fixture.ts";
import type { Node } from "./ir/graph.ts";
import { layerOf } from "./ir/naming.ts";
import { ATTENTION_SCRATCH, LOADING_BYTES, memoryOf, STEP_REPORT_BYTES } from "./memory.ts";
import { layout } from "./passes/layout.ts";
import type { Plan } from "./plan.ts";
import { packedShape } from "./weights/format.ts";

const limits = { capacity: 16, contextLength: 100, cachePositions: 100 };

function planOn(isOnGpu: (node: Node) => boolean, prefill: Plan["corrections"]["prefill"] = "none"): Plan {
  const { graph, lanes, corrections } = onDevices(tinyPlan().graph, isOnGpu);
  return { ...tinyPlan(), graph, lanes, memory: layout(graph), corrections: { ...corrections, prefill } };
}

/** Everything of the last layer and behind it. */
function isLate(node: Node): boolean {
  const at = tinyPlan().graph.nodes.findIndex((n) => n.outputs[0]?.name === node.outputs[0]?.name);
  const first = tinyPlan().graph.nodes.findIndex((n) =>
    "path" in n.params && layerOf(n.params.path) === TINY.layers - 1
  );
  return at >= first;
}

Deno.test("a plan for the CPU alone has no device memory, and none for the way there", () => {
  const { device, bytes, deviceTensors, inputs } = memoryOf(tinyPlan(), limits);
  assert.deepEqual([device, bytes.staging, deviceTensors.size, inputs.tokens], [null, 0, 0, 0]);
});

Deno.test("weights and caches are where their nodes are; a tied matrix is on both devices", () => {
  const cpu = memoryOf(tinyPlan(), limits);
  const both = memoryOf(planOn(isLate), limits);
  const all = memoryOf(planOn(() => true), limits);
  assert.deepEqual([...both.caches.values()].map((c) => c.device), ["cpu", "gpu"]);
  assert.deepEqual([...both.caches.values()].map((c) => c.k), [0, 0]);
  assert.equal(2 * both.bytes.cache, cpu.bytes.cache);
  assert.equal(both.device!.cache, both.bytes.cache);
  assert.deepEqual([all.bytes.cache, all.device!.cache], [0, cpu.bytes.cache]);
  const tied = packedShape({ kind: "q8", group: 64 }, TINY.vocabulary, TINY.hidden).bytes;
  const near = (a: number, b: number) => assert.ok(a >= b && a < b + 64 * 24, `${a} of ${b}`);
  near(both.bytes.weights + both.device!.weights, cpu.bytes.weights + tied);
  near(all.device!.weights, cpu.bytes.weights);
  assert.equal(all.bytes.weights, 0);
  const ends = [...all.deviceTensors.values()];
  assert.deepEqual(ends, ends.toSorted((a, b) => a - b));
  assert.ok(all.deviceTensors.has("model.embed_tokens.packed") && all.deviceTensors.has("model.norm.weight"));
  assert.ok(both.deviceTensors.has("model.embed_tokens.packed"));
  assert.ok(!both.deviceTensors.has("model.layers.0.input_layernorm.weight"));
});

Deno.test("both devices have one layout; logits are in the host's memory", () => {
  const plan = planOn(() => true);
  const { bytes, device, inputs, arrivals } = memoryOf(plan, limits);
  assert.deepEqual([device!.arena, device!.tables], [bytes.arena, bytes.tables].map(rounded));
  assert.equal(inputs.tokens, STEP_REPORT_BYTES);
  const events = plan.lanes.flatMap(({ steps }) => steps).filter((step) => "signal" in step).length;
  assert.deepEqual([arrivals, device!.step], [bytes.step, rounded(bytes.step + 4 * events)]);
  assert.deepEqual([bytes.logits, bytes.staging], [4 * 16 * TINY.vocabulary, 2 * LOADING_BYTES]);
  const { total, ...parts } = device!;
  assert.equal(total, Object.values(parts).reduce((sum, part) => sum + part, 0));
});

Deno.test("what a kernel needs beside, and a prompt whose corrections stream", () => {
  const isLinear = (node: Node) => node.op === "linear" && node.params.window === "0.gate_up";
  const [without, with_] = ["none", "stream"] as const;
  const attention = (more: Partial<typeof limits>) =>
    memoryOf(planOn(() => true, without), { ...limits, ...more }).device!.scratch;
  assert.equal(attention({}), 0);
  const { heads, headDim } = TINY;
  assert.equal(attention({ contextLength: 700 }), rounded(4 * 3 * 16 * heads * (headDim + 2)));
  assert.equal(attention({ contextLength: 700, capacity: 2 ** 16 }), ATTENTION_SCRATCH);
  assert.equal(memoryOf(planOn(isLinear, without), limits).device!.scratch, 0);
  // 320 rows of 64 inputs in one group each.
  const { bytes, device } = memoryOf(planOn(isLinear, with_), limits), { scratch, staging } = device!;
  assert.equal(bytes.staging, Math.max(2 * LOADING_BYTES, staging));
  assert.deepEqual([scratch, staging], [320 * 64 + 4 * 320, 2 * (rounded(1000) + 9 * 64)]);
});

Deno.test("prompts: factors may be computed on the CPU, rows not", () => {
  const prefill = (correct: "low_rank" | "sparse" | "none", onGpu: boolean) => {
    const { graph } = passes(transformer(), {
      weights: "q3",
      head: "q8",
      group: 64,
      correct,
      budget: { kind: "bytes", share: 0.1 },
      residualWidth: 4,
      factorDType: "i8",
      maxRank: 16,
    }).schedule;
    return onDevices(graph, () => onGpu).corrections;
  };
  assert.deepEqual([prefill("none", true).prefill, prefill("none", false).prefill], ["none", "none"]);
  assert.deepEqual([prefill("sparse", false).prefill, prefill("low_rank", false).prefill], ["cpu", "cpu"]);
  assert.match(prefill("low_rank", true).prefillCause, /ms without, .* ms with the CPU's, .* ms streamed/);
  assert.match(
    prefill("sparse", true).prefillCause,
    /^512 tokens are predicted to take \S+ ms without, \S+ ms streamed/,
  );
  assert.notEqual(prefill("sparse", true).prefill, "cpu");
});

function rounded(bytes: number): number {
  return Math.ceil(bytes / 64) * 64;
}
