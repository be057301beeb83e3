import assert from "node:assert/strict";
import fc from "fast-check";
import { arbitrarySizes, transformer } from "../ir/fixture.ts";
import type { LanePlan, LaneStep } from "../plan.ts";
import { reads } from "../ir/graph.ts";
import { asyncTimeline, DeadlockError, serialTimeline } from "../timeline.ts";
import { arbitraryChoices, passes, profile } from "../../tests/fixtures/passes.ts";
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
