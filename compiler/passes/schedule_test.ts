import assert from "node:assert/strict";
import fc from "fast-check";
import { arbitraryGraph, arbitrarySizes, transformer } from "../ir/fixture.ts";
import { type Graph, values } from "../ir/graph.ts";
import { CORRECTION_OPS } from "../ir/ops.ts";
import { elementsPerToken } from "../ir/types.ts";
import type { LanePlan, LaneStep } from "../plan.ts";
import { asyncTimeline, DeadlockError, serialTimeline } from "../timeline.ts";
import { arbitraryChoices, CHOICES, passes, profile } from "../../tests/fixtures/passes.ts";
import { layout } from "./layout.ts";
import { verifyLanes } from "./schedule.ts";

const models = fc.oneof(arbitrarySizes.map(transformer), arbitraryGraph);

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
        for (const name of graph.nodes[step.node]?.inputs ?? []) {
          assert.ok((end.get(makers.get(name) ?? -1) ?? 0) <= step.start + 0.02);
        }
      }
      const off = serialTimeline(graph, "off", { profile }).microseconds;
      assert.ok(off <= serialTimeline(graph, "inline", { profile }).microseconds);
    }),
    { numRuns: 40 },
  );
});

/**
 * Every order in which the lanes may run, approximated by two extremes: corrections as early as their fork allows, or as
 * late as their merge does. In each, a value is in use from its making to its last reader.
 */
function checkLayout(graph: Graph): void {
  const memory = layout(graph);
  const types = values(graph);
  const home = liveness(graph).home;
  const bytes = new Map(liveness(graph).allocations.map((a) => [a.name, a.bytes]));
  for (const early of [true, false]) {
    const order = graph.nodes.map((_, i) => i);
    const key = (i: number): number => {
      const node = graph.nodes[i];
      if (node === undefined || !CORRECTION_OPS.has(node.op)) return i;
      if (early) {
        return graph.nodes.findIndex((n) => n.outputs.some((v) => v.name === node.inputs[0])) + 0.5;
      }
      return graph.nodes.findIndex((n) => n.inputs.includes(node.outputs[0]?.name ?? "")) - 0.5;
    };
    order.sort((a, b) => key(a) - key(b) || a - b);
    const lives = new Map<string, { first: number; last: number }>();
    order.forEach((index, time) => {
      const node = graph.nodes[index];
      for (const name of [...node?.outputs.map((v) => v.name) ?? [], ...node?.inputs ?? []]) {
        const owner = home.get(name);
        if (owner === undefined) continue;
        const life = lives.get(owner) ?? { first: time, last: time };
        lives.set(owner, { first: life.first, last: time });
      }
    });
    const blocks = [...lives].map(([name, life]) => ({
      name,
      ...life,
      from: memory.offsets[name] ?? -1,
      to: (memory.offsets[name] ?? -1) + (bytes.get(name) ?? 0),
    }));
    for (const a of blocks) {
      assert.ok(a.from >= 0 && a.from % 64 === 0 && a.to <= memory.bytesPerToken);
      for (const b of blocks) {
        if (a.name === b.name || a.last < b.first || b.last < a.first) continue;
        assert.ok(a.to <= b.from || b.to <= a.from, `${a.name} and ${b.name} share memory while both live`);
      }
    }
  }
  const outside = new Set([...graph.inputs.map((v) => v.name), ...graph.outputs]);
  for (const [name, { type }] of types) {
    const owner = home.get(name);
    if (owner === undefined) continue;
    assert.ok(!outside.has(name));
    assert.equal(memory.offsets[name], memory.offsets[owner]);
    assert.ok((bytes.get(owner) ?? 0) >= 4 * elementsPerToken(type));
  }
}

Deno.test("layout: values that live at the same time do not overlap, in whatever order the lanes run", () => {
  fc.assert(
    fc.property(
      models,
      arbitraryChoices,
      (traced, choices) => checkLayout(passes(traced, choices).schedule.graph),
    ),
    { numRuns: 60 },
  );
});

Deno.test("layout: memory is reused, so layers add nothing", () => {
  const size = (layers: number) =>
    layout(
      passes(
        transformer({
          layers,
          hidden: 64,
          heads: 4,
          kvHeads: 2,
          headDim: 16,
          intermediate: 160,
          vocabulary: 99,
          tied: false,
        }),
        CHOICES,
      ).schedule.graph,
    ).bytesPerToken;
  assert.ok(size(8) <= size(2));
});
