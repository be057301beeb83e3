import assert from "node:assert/strict";
import fc from "fast-check";
import { arbitrarySizes, transformer } from "../ir/fixture.ts";
import type { LanePlan, LaneStep } from "../plan.ts";
import { reads } from "../ir/graph.ts";
import { asyncTimeline, DeadlockError, serialTimeline } from "../timeline.ts";
import { arbitraryChoices, CHOICES, onDevices, passes, profile } from "../../tests/fixtures/passes.ts";
import { arbitraryScript, graphOf } from "../../tests/fuzz/graphs.ts";
import { verifyLanes } from "./schedule.ts";

const models = fc.oneof(arbitrarySizes.map(transformer), arbitraryScript.map((s) => graphOf(s).graph));

Deno.test("lanes have one fork and one merge event per corrected window", () => {
  const { graph, lanes } = passes(transformer()).schedule;
  const windows = graph.budgets.filter((b) => b.channels > 0).length;
  const count = (steps: readonly LaneStep[], kind: string) => steps.filter((s) => kind in s).length;
  const [backbone, compensation] = lanes;
  for (const kind of ["signal", "wait"]) {
    assert.equal(count(backbone?.steps ?? [], kind), windows);
    assert.equal(count(compensation?.steps ?? [], kind), windows);
  }
});

Deno.test("lanes of two devices: events are in the order of their nodes, each waited for once, none for nothing", () => {
  fc.assert(
    fc.property(models, arbitraryChoices, fc.infiniteStream(fc.boolean()), (traced, choices, onGpu) => {
      const { graph, lanes } = onDevices(
        passes(traced, choices).schedule.graph,
        () => onGpu.next().value === true,
      );
      const numbers = (steps: readonly LaneStep[], kind: "wait" | "signal") =>
        steps.flatMap((step) => kind in step ? Object.values(step) : []);
      const all = (kind: "wait" | "signal") => lanes.flatMap(({ steps }) => numbers(steps, kind));
      const events = all("signal").sort((a, b) => a - b);
      assert.deepEqual(events, events.map((_, i) => i));
      assert.deepEqual(all("wait").sort((a, b) => a - b), events);
      for (const { lane, steps } of lanes) {
        for (const kind of ["wait", "signal"] as const) {
          const own = numbers(steps, kind);
          assert.deepEqual(own, own.toSorted((a, b) => a - b));
        }
        for (const step of steps) {
          if (!("run" in step)) continue;
          const { device } = graph.nodes[step.run]!.placement;
          const withGpu = graph.nodes.some((node) => node.placement.device === "gpu");
          if (withGpu) assert.equal(device, lane === "backbone" ? "gpu" : "cpu");
        }
      }
    }),
    { numRuns: 40 },
  );
});

Deno.test("a lane that has waited for a node does not wait for those before it", () => {
  const { graph, lanes } = onDevices(passes(transformer(), CHOICES).schedule.graph, () => true);
  const [backbone, compensation] = lanes as [LanePlan, LanePlan];
  // Each window: the CPU waits for its input, the GPU for its sum, although choices of channels are read by nobody else.
  const windows = graph.budgets.filter((b) => b.channels > 0).length;
  for (const { steps } of [backbone, compensation]) {
    assert.equal(steps.filter((step) => "wait" in step).length, windows);
    assert.equal(steps.filter((step) => "signal" in step).length, windows);
  }
  const on = (device: string) =>
    graph.nodes.flatMap((node, i) => node.placement.device === device ? [i] : []);
  const ran = ({ steps }: LanePlan) => steps.flatMap((step) => "run" in step ? [step.run] : []);
  assert.deepEqual([ran(backbone), ran(compensation)], [on("gpu"), on("cpu")]);
});

Deno.test("broken lanes are found", () => {
  const { graph, lanes } = passes(transformer()).schedule;
  const [backbone, compensation] = lanes as [LanePlan, LanePlan];
  const without = (plan: LanePlan, kind: string): LanePlan => {
    const at = plan.steps.findIndex((s) => kind in s);
    return { ...plan, steps: plan.steps.filter((_, i) => i !== at) };
  };
  assert.throws(() => verifyLanes(graph, [without(backbone, "signal"), compensation]), DeadlockError);
  assert.throws(
    () => verifyLanes(graph, [without(backbone, "wait"), compensation]),
    /before it is known to be made/,
  );
  assert.throws(
    () => verifyLanes(graph, [backbone, without(compensation, "wait")]),
    /before it is known to be made/,
  );
  assert.throws(() => verifyLanes(graph, [backbone, without(compensation, "signal")]), DeadlockError);
  assert.throws(() => verifyLanes(graph, [backbone, without(compensation, "run")]), /nodes|known/);
  assert.throws(
    () => asyncTimeline(graph, [without(backbone, "signal"), compensation], { profile }),
    DeadlockError,
  );
});

Deno.test("timelines: causal, no shorter than the slowest lane, no longer than both in a row", () => {
  fc.assert(
    fc.property(models, arbitraryChoices, (traced, choices) => {
      const { graph, lanes } = passes(traced, choices).schedule;
      const timeline = asyncTimeline(graph, lanes, { profile });
      assert.equal(timeline.steps.length, graph.nodes.length);
      const busy = timeline.lanes.map((l) => l.busy);
      assert.ok(timeline.microseconds >= Math.max(...busy) - 0.02);
      assert.ok(timeline.microseconds <= busy.reduce((a, b) => a + b, 0) + 0.02);
      const end = new Map(timeline.steps.map((s) => [s.node, s.end]));
      const makers = new Map(graph.nodes.flatMap((n, i) => n.outputs.map((v) => [v.name, i] as const)));
      for (const step of timeline.steps) {
        for (const name of reads(graph.nodes[step.node]!)) {
          assert.ok((end.get(makers.get(name) ?? -1) ?? 0) <= step.start + 0.02);
        }
      }
      const off = serialTimeline(graph, "off", { profile }).microseconds;
      assert.ok(off <= serialTimeline(graph, "inline", { profile }).microseconds);
    }),
    { numRuns: 40 },
  );
});
