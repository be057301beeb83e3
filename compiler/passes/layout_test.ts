import assert from "node:assert/strict";
import fc from "fast-check";
import { arbitraryChoices, CHOICES, onDevices, passes } from "../../tests/fixtures/passes.ts";
import { arbitraryScript, graphOf } from "../../tests/fuzz/graphs.ts";
import { arbitrarySizes, TINY, transformer } from "../ir/fixture.ts";
import { type Graph, reads, usesGpu, windowOf } from "../ir/graph.ts";
import { arraysOf } from "../ir/types.ts";
import type { LanePlan } from "../plan.ts";
import { allocations, homes, layout } from "./layout.ts";
import { makeLanes, type Schedule } from "./schedule.ts";
import { stepGraph } from "./steps.ts";

const models = fc.oneof(arbitrarySizes.map(transformer), arbitraryScript.map((s) => graphOf(s).graph));

function checkLayout(graph: Graph): void {
  const memory = layout(graph);
  const home = homes(graph);
  const bytes = new Map(allocations(graph).map((a) => [a.name, a.bytes]));
  for (const node of graph.nodes) {
    for (const { name, type } of node.outputs) {
      const { allocation, column, stride } = home.get(name)!;
      if (allocation === undefined) continue;
      const size = Object.values(arraysOf(type)).reduce((a, b) => a + b, 0);
      assert.ok(bytes.get(allocation)! >= 4 * column + size, `${name} does not fit ${allocation}`);
      if (type.dtype === "f32") assert.ok(4 * stride <= bytes.get(allocation)!);
    }
  }
  for (const { name } of allocations(graph)) {
    const from = memory.offsets[name]!;
    assert.ok(from >= 0 && from % 64 === 0 && from + bytes.get(name)! <= memory.bytesPerToken);
  }
}

/**
 * Whether each node is done before another begins, from the lanes as they are executed: a node knows what its lane has
 * waited for, and what those knew.
 */
function orderOf(lanes: readonly LanePlan[]): (first: number, then: number) => boolean {
  const before = new Map<number, Set<number>>();
  const signalled = new Map<number, Set<number>>();
  const states = lanes.map(({ steps }) => ({ steps: [...steps], done: new Set<number>() }));
  for (let moved = true; moved;) {
    moved = false;
    for (const { steps, done } of states) {
      for (let [step] = steps; step !== undefined; [step] = steps) {
        if ("wait" in step) {
          const known = signalled.get(step.wait);
          if (known === undefined) break;
          known.forEach((node) => done.add(node));
        } else if ("signal" in step) signalled.set(step.signal, new Set(done));
        else {
          before.set(step.run, new Set(done));
          done.add(step.run);
        }
        steps.shift();
        moved = true;
      }
    }
  }
  assert.ok(states.every(({ steps }) => steps.length === 0), "the lanes wait for each other for ever");
  return (first, then) => before.get(then)!.has(first);
}

/** Of all pairs that touch the same bytes, one is done before the other begins, or both only read one value. */
function checkRaces({ graph, lanes }: Pick<Schedule, "graph" | "lanes">, { offsets } = layout(graph)): void {
  const home = homes(graph);
  const isBefore = orderOf(lanes);
  const users = new Map<string, Set<number>>();
  graph.nodes.forEach((node, i) => {
    for (const name of [...reads(node), ...node.outputs.map((v) => v.name)]) {
      const owner = home.get(name)?.allocation;
      if (owner !== undefined) users.set(owner, (users.get(owner) ?? new Set()).add(i));
    }
  });
  const blocks = allocations(graph).map(({ name, bytes }) => {
    const from = offsets[name]!;
    return { name, from, to: from + bytes, users: [...users.get(name)!] };
  });
  for (const a of blocks) {
    const [maker, ...readers] = a.users;
    for (const reader of readers) assert.ok(isBefore(maker!, reader), `${a.name} is read before it is made`);
    for (const b of blocks) {
      if (a === b || a.to <= b.from || b.to <= a.from) continue;
      const apart = a.users.every((u) => b.users.every((v) => isBefore(u, v))) ||
        b.users.every((u) => a.users.every((v) => isBefore(u, v)));
      assert.ok(apart, `${a.name} and ${b.name} share memory and are not apart`);
    }
  }
}

Deno.test("values that live at the same time do not overlap, in whatever order the lanes run", () => {
  fc.assert(
    fc.property(models, arbitraryChoices, (traced, choices) => {
      const { schedule } = passes(traced, choices);
      checkLayout(schedule.graph);
      checkRaces(schedule);
    }),
    { numRuns: 60 },
  );
});

Deno.test("on two devices nothing is overwritten that the other lane may still read", () => {
  let shared = 0, alone = 0;
  fc.assert(
    fc.property(models, arbitraryChoices, fc.infiniteStream(fc.boolean()), (traced, choices, onGpu) => {
      const { graph } = passes(traced, choices).schedule;
      const placed = onDevices(graph, () => onGpu.next().value === true);
      checkLayout(placed.graph);
      checkRaces(placed);
      shared += layout(placed.graph).bytesPerToken;
      alone += allocations(placed.graph).reduce((sum, { bytes }) => sum + bytes, 0);
    }),
    { numRuns: 60 },
  );
  assert.ok(shared < alone, "no memory was shared at all");
});

Deno.test("steps that leave corrections out, or have them on the GPU, share the arena with the others", () => {
  const forms = fc.constantFrom(...["off", "none", "cpu", "stream"] as const);
  fc.assert(
    fc.property(
      models,
      arbitraryChoices,
      fc.integer({ min: 2, max: 4 }),
      forms,
      (traced, choices, period, form) => {
        let seen = 0;
        const { graph } = onDevices(passes(traced, choices).schedule.graph, () => seen++ % period > 0);
        const step = stepGraph(graph, form);
        checkRaces({ graph: step, lanes: makeLanes(step) }, layout(graph));
        const corrections = step.nodes.filter((node) => windowOf(node) !== undefined);
        if (form === "off" && usesGpu(graph)) assert.equal(corrections.length, 0);
      },
    ),
    { numRuns: 100 },
  );
});

Deno.test("layers on the CPU share memory with each other, too", () => {
  const size = (layers: number) => {
    const { graph } = passes(transformer({ ...TINY, layers }), CHOICES).schedule;
    const head = graph.nodes.findLast((node) => node.op === "linear");
    return layout(onDevices(graph, (node) => node === head).graph).bytesPerToken;
  };
  assert.ok(size(8) <= size(2));
});

Deno.test("memory is reused, so layers add nothing", () => {
  const size = (layers: number) =>
    layout(passes(transformer({ ...TINY, layers }), CHOICES).schedule.graph).bytesPerToken;
  assert.ok(size(8) <= size(2));
});

Deno.test("outputs of a linear are columns of one block; the logits are a segment of their own", () => {
  const { graph } = passes(transformer(TINY), CHOICES).schedule;
  const home = homes(graph);
  const qkv = graph.nodes.find((n) => n.op === "linear" && n.outputs.length === 3)!;
  const [q, k, v] = qkv.outputs.map((value) => home.get(value.name));
  const block = { allocation: qkv.outputs[0]!.name, stride: 128 };
  assert.deepEqual([q, k, v], [0, 64, 96].map((column) => ({ ...block, column })));
  assert.deepEqual(home.get(graph.outputs[0]!), {
    allocation: undefined,
    column: 0,
    stride: TINY.vocabulary,
  });
});

Deno.test("only the output is the logits, whatever other values are called", () => {
  const text = JSON.stringify(passes(transformer(TINY), CHOICES).schedule.graph);
  const { name } = passes(transformer(TINY), CHOICES).schedule.graph.nodes[0]!.outputs[0]!;
  const graph: Graph = JSON.parse(
    text.replaceAll('"logits"', '"scores"').replaceAll(`"${name}"`, '"logits"'),
  );
  assert.equal(homes(graph).get("logits")?.allocation, "logits");
  assert.equal(homes(graph).get("scores")?.allocation, undefined);
  checkLayout(graph);
});

Deno.test("corrections that stand behind the first who adds one of them keep their memory until they have run", () => {
  const budget = { kind: "rank+channels", rank: 2, channels: 4 } as const;
  const { graph } = passes(transformer(TINY), { ...CHOICES, correct: "both", budget }).schedule;
  const late = (name: string) =>
    graph.nodes.find((n) => n.outputs.some((v) => v.name === name))?.op === "sparse_sum";
  const isLate = (node: Graph["nodes"][number]) => node.op === "sparse_select" || node.op === "sparse_sum";
  const nodes = graph.nodes.filter((node) => !isLate(node)).map((node) =>
    node.added ? { ...node, added: node.added.map((deltas) => deltas.filter((d) => !late(d))) } : node
  );
  const moved = { ...graph, nodes: [...nodes, ...graph.nodes.filter(isLate)] };
  assert.ok(moved.nodes.length > nodes.length);
  const home = homes(moved);
  const lives = new Map(allocations(moved).map((a) => [a.name, a]));
  moved.nodes.forEach((node, i) => {
    for (const name of [...reads(node), ...node.outputs.map((v) => v.name)]) {
      const life = lives.get(home.get(name)?.allocation ?? "");
      const spans = life?.uses[0] ?? [{ first: i, last: i }];
      assert.ok(spans.every(({ first, last }) => first <= i && i <= last), `${name} at node ${i}`);
    }
  });
});
