import assert from "node:assert/strict";
import { HcinferError } from "../../compiler/errors.ts";
import { TINY } from "../../compiler/ir/fixture.ts";
import { memoryOf } from "../../compiler/memory.ts";
import { predictPlan } from "../../compiler/inspect.ts";
import { replan } from "../../compiler/replan.ts";
import { genericProfile, PROFILES } from "../../compiler/profile.ts";
import { profile, tinyPlan } from "../../tests/fixtures/passes.ts";
import { refusal } from "../../tests/fixtures/errors.ts";
import { stepOne } from "../../tests/fixtures/steps.ts";
import { createNullExecutor, type NullExecutor } from "./null.ts";

const plan = tinyPlan();
const MODES = ["inline", "async", "off"] as const;

function open(corrections: "auto" | typeof MODES[number], threads = 2): NullExecutor {
  return createNullExecutor(plan, { threads, corrections, profile });
}

Deno.test("its trace is the timeline that inspect shows", () => {
  for (const threads of [2, 3, 8]) {
    const { modes, defaultMode } = predictPlan(plan, { profile, threads });
    for (const { mode, microseconds, lanes } of modes) {
      const { trace } = open(mode, threads);
      assert.deepEqual([trace.mode, trace.microseconds, trace.lanes], [mode, microseconds, lanes]);
    }
    assert.equal(open("auto", threads).trace.mode, defaultMode);
  }
});

Deno.test("every node runs once, in an order and without gaps but stalls", () => {
  for (const mode of MODES) {
    const { trace } = open(mode);
    const all = plan.graph.nodes.map((_, i) => i);
    const backbone = all.filter((i) => plan.graph.nodes[i]?.placement.lane === "backbone");
    const ran = trace.steps.map((step) => step.node).sort((a, b) => a - b);
    assert.deepEqual(ran, mode === "off" ? backbone : all);
    assert.deepEqual(trace.steps.map((s) => s.start), trace.steps.map((s) => s.start).sort((a, b) => a - b));
    for (const { lane, busy, stalled } of trace.lanes) {
      let clock = 0, sums = { busy: 0, stalled: 0 };
      for (const step of trace.steps) {
        if (mode === "async" && step.lane !== lane) continue;
        assert.ok(Math.abs(step.start - step.stall - clock) < 0.02, `${mode}: node ${step.node}`);
        assert.ok(step.stall >= 0 && step.end >= step.start);
        clock = step.end;
        sums = { busy: sums.busy + step.end - step.start, stalled: sums.stalled + step.stall };
      }
      assert.ok(Math.abs(sums.busy - busy) < 1, `${mode} ${lane}: ${sums.busy} of ${busy}`);
      assert.ok(Math.abs(sums.stalled - stalled) < 1, `${mode} ${lane}: ${sums.stalled} of ${stalled}`);
      assert.ok(trace.microseconds >= clock - 0.02);
    }
  }
});

Deno.test("asynchronously a correction begins after its input, and is waited for by whoever adds it", () => {
  const { trace } = open("async");
  const { nodes } = plan.graph;
  const byNode = new Map(trace.steps.map((step) => [step.node, step]));
  const makers = new Map(nodes.flatMap((node, i) => node.outputs.map((value) => [value.name, i])));
  let merges = 0;
  nodes.forEach((node, i) => {
    for (const name of [...node.inputs, ...node.added?.flat() ?? []]) {
      const maker = makers.get(name);
      if (maker === undefined) continue;
      if (node.added?.flat().includes(name)) merges++;
      assert.ok(byNode.get(i)!.start >= byNode.get(maker)!.end - 0.02, `node ${i} reads ${name} too early`);
    }
  });
  assert.ok(merges > 0);
  const [backbone, compensation] = trace.lanes;
  assert.ok(backbone!.stalled > 0 && compensation!.stalled > 0);
  // Nobody waits in a lane of its own.
  for (const mode of ["inline", "off"] as const) assert.equal(open(mode).trace.lanes[0]!.stalled, 0);
});

Deno.test("one thread runs no lanes beside each other", () => {
  assert.equal(open("async", 1).trace.mode, "inline");
  assert.equal(open("off", 1).trace.mode, "off");
});

Deno.test("the clock counts tokens, whatever steps they come in; logits are zeros", () => {
  using executor = open("async");
  using first = executor.sequence();
  const logits = stepOne(executor, first, [1, 2, 3]);
  assert.equal(logits.length, 3 * TINY.vocabulary);
  assert.ok(logits.every((value) => value === 0));
  using second = first.fork();
  assert.deepEqual([first.length, second.length], [3, 3]);
  const run = (sequence: typeof first) =>
    ({ sequence, position: 3, tokens: Int32Array.of(4), as: "decode", logits: "last" }) as const;
  assert.deepEqual(executor.step({ runs: [run(first), run(second)] }).map((l) => l.length), [128, 128]);
  assert.ok(Math.abs(executor.clock - 5 * executor.trace.microseconds) < 1e-9);
  assert.throws(() => stepOne(executor, first, [1], { position: 9 }), HcinferError);
  assert.equal(stepOne(executor, first, [1], { position: 1, logits: "none" }).length, 0);
  assert.deepEqual([first.length, second.length], [2, 4]);
  using other = open("async");
  const closed = executor.sequence();
  closed[Symbol.dispose]();
  for (const sequence of [other.sequence(), closed, closed.fork()]) {
    const runs = [run(second), { ...run(sequence), position: 0 }];
    assert.throws(() => executor.step({ runs }), refusal("input", /closed or of another executor/));
  }
  assert.equal(second.length, 4);
});

Deno.test("stepAsync is step, and hears a signal that has aborted", async () => {
  using executor = open("inline");
  using sequence = executor.sequence();
  const request = {
    runs: [{ sequence, position: 0, tokens: Int32Array.of(1), as: "decode", logits: "all" }],
  } as const;
  const reason = new Error("enough");
  await assert.rejects(executor.stepAsync(request, AbortSignal.abort(reason)), reason);
  assert.deepEqual([sequence.length, executor.clock], [0, 0]);
  assert.deepEqual(await executor.stepAsync(request), [new Float32Array(TINY.vocabulary)]);
});

Deno.test("its memory is what the limits ask for", () => {
  const limits = { capacity: 24, contextLength: 100, cachePositions: 300 };
  using executor = createNullExecutor(plan, { threads: 1, corrections: "auto", ...limits });
  assert.deepEqual([executor.capacity, executor.contextLength], [24, 100]);
  assert.deepEqual(executor.memory, memoryOf(plan, limits));
  const { bytes } = executor.memory;
  // Keys and values in f16, 5 pages of 64 positions; logits of every token of a step in f32.
  assert.equal(bytes.cache, TINY.layers * 2 * 2 * TINY.kvHeads * TINY.headDim * 5 * 64);
  assert.equal(bytes.logits, 4 * 24 * TINY.vocabulary);
  assert.equal(bytes.arena, 24 * plan.memory.bytesPerToken);
  assert.equal(bytes.corrections, 1000 * plan.windows.length);
  assert.equal(createNullExecutor(plan, { threads: 1, corrections: "auto" }).capacity, 128);
});

Deno.test("without a profile it pretends a generic machine", () => {
  const options = { threads: 8, corrections: "inline" } as const;
  assert.deepEqual(genericProfile(8), PROFILES["generic-8-core"]);
  const expected = createNullExecutor(plan, { ...options, profile: PROFILES["generic-8-core"] }).trace;
  assert.deepEqual(createNullExecutor(plan, options).trace, expected);
});

Deno.test("a plan with a GPU: its own machine unless another is asked for, lanes on both devices, stalls where they are", () => {
  const onGpu = replan(plan, { profile: PROFILES["rtx-4060-laptop"] });
  const { trace, memory } = createNullExecutor(onGpu, { threads: 8, corrections: "auto" });
  assert.equal(trace.mode, "async");
  assert.deepEqual(trace.lanes.map((lane) => lane.devices), [["gpu"], ["cpu"]]);
  assert.ok(memory.device!.total > 0);
  // The tiny model's windows are over before a correction could be back: what adds one waits.
  const adds = trace.steps.filter(({ node }) => onGpu.graph.nodes[node]!.added !== undefined);
  assert.ok(adds.length > 0 && adds.every(({ stall }) => stall > 0));
  assert.ok(trace.corrections.hidden < trace.corrections.busy);
  assert.throws(
    () => createNullExecutor(onGpu, { threads: 8, corrections: "auto", profile }),
    refusal("usage", /the plan has nodes on a GPU, and the machine generic-2-core has none/),
  );
});
