import assert from "node:assert/strict";
import { refusal } from "../tests/fixtures/errors.ts";
import { CHOICES, limits, passes, tinyPlan } from "../tests/fixtures/passes.ts";
import { checkGraph } from "./bundle_check.ts";
import { transformer } from "./ir/fixture.ts";
import { CORRECTION_OPS } from "./ir/ops.ts";
import { memoryOf } from "./memory.ts";
import { layout } from "./passes/layout.ts";
import { type CorrectionMode, correctionMode, splitThreads } from "./plan.ts";
import { PROFILES } from "./profile.ts";
import { replan } from "./replan.ts";

const profile = PROFILES["rtx-4060-laptop"];
const plan = tinyPlan();

Deno.test("a plan for the CPU becomes one for a GPU, and the same plan again on the way back", () => {
  const onGpu = replan(plan, { profile });
  assert.equal(checkGraph(onGpu), undefined);
  for (const { op, placement } of onGpu.graph.nodes) {
    const corrects = CORRECTION_OPS.has(op);
    assert.deepEqual(
      [placement.device, placement.lane],
      corrects ? ["cpu", "compensation"] : ["gpu", "backbone"],
    );
  }
  assert.deepEqual(onGpu.provenance.profile, profile);
  // Instructions, budgets and weights stay.
  const instructions = ({ graph }: typeof plan) => graph.nodes.map(({ placement: _, ...node }) => node);
  assert.deepEqual(instructions(onGpu), instructions(plan));
  assert.deepEqual([onGpu.graph.budgets, onGpu.weights, onGpu.windows], [
    plan.graph.budgets,
    plan.weights,
    plan.windows,
  ]);
  assert.deepEqual(replan(onGpu, { profile: PROFILES["generic-2-core"] }), plan);
  assert.deepEqual(replan(onGpu, { profile }), onGpu);
  assert.equal(
    replan(onGpu, { profile, device: "cpu" }).graph.nodes.some((n) => n.placement.device === "gpu"),
    false,
  );
});

Deno.test("it is the plan that compiling for that machine with these budgets makes", () => {
  const choices = { ...CHOICES, budget: { kind: "channels", channels: 10 } } as const;
  const forCpu = passes(transformer(), choices).schedule;
  const forGpu = passes(transformer(), choices, { profile }).schedule;
  const { graph, lanes, corrections } = replan({ ...plan, ...forCpu, memory: layout(forCpu.graph) }, {
    profile,
  });
  assert.deepEqual(lanes, forGpu.lanes);
  assert.deepEqual(corrections, forGpu.corrections);
  assert.deepEqual(
    graph.nodes.map((node) => node.placement),
    forGpu.graph.nodes.map((node) => node.placement),
  );
});

Deno.test("a limit that holds a part of the model is kept; a smaller one is refused", () => {
  const whole = memoryOf(replan(plan, { profile, limits }), limits).device!.total;
  const part = replan(plan, { profile, limits, gpuMemory: whole - 1 });
  assert.equal(checkGraph(part), undefined);
  assert.ok(memoryOf(part, limits).device!.total < whole);
  assert.equal(part.graph.nodes[0]!.placement.device, "cpu");
  assert.equal(part.graph.nodes.at(-1)!.placement.device, "gpu");
  assert.throws(
    () => replan(plan, { profile, gpuMemory: 1000 }),
    refusal("usage", /0\.977 KiB .* the smallest plan on the GPU/),
  );
  assert.throws(
    () => replan(plan, { profile: PROFILES["generic-2-core"], device: "gpu" }),
    refusal("usage", /has none/),
  );
  assert.throws(
    () => replan(plan, { profile, limits: { contextLength: 129 } }),
    refusal("usage", /129 tokens/),
  );
});

Deno.test("threads: all beside a GPU, and one is enough for lanes", () => {
  const onGpu = replan(plan, { profile });
  const modes = (p: typeof plan, asked: CorrectionMode) =>
    [1, 2].map((threads) => correctionMode(p, asked, threads));
  assert.deepEqual([modes(onGpu, "auto"), modes(onGpu, "inline")], [["async", "async"], [
    "inline",
    "inline",
  ]]);
  assert.deepEqual(modes(plan, "async"), ["inline", "async"]);
  assert.deepEqual(modes(onGpu, "off"), ["off", "off"]);
  assert.deepEqual(splitThreads(onGpu.corrections, 3), { backbone: 0, compensation: 3 });
  // A spilled layer makes a lane, and is no correction.
  const { schedule: { graph, lanes, corrections } } = passes(transformer(), { ...CHOICES, correct: "none" });
  const bare = { ...plan, graph, lanes, corrections, memory: layout(graph) };
  const whole = memoryOf(replan(bare, { profile, limits }), limits).device!.total;
  const spilled = replan(bare, { profile, limits, gpuMemory: whole - 1 });
  assert.equal(spilled.lanes.length, 2);
  assert.deepEqual(modes(spilled, "async"), ["off", "off"]);
});
