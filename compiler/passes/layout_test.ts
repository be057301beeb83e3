import assert from "node:assert/strict";
import fc from "fast-check";
import { arbitraryChoices, CHOICES, passes } from "../../tests/fixtures/passes.ts";
import { arbitraryScript, graphOf } from "../../tests/fuzz/graphs.ts";
import { arbitrarySizes, TINY, transformer } from "../ir/fixture.ts";
import { type Graph, reads } from "../ir/graph.ts";
import { CORRECTION_OPS } from "../ir/ops.ts";
import { arraysOf } from "../ir/types.ts";
import { allocations, homes, layout } from "./layout.ts";

const models = fc.oneof(arbitrarySizes.map(transformer), arbitraryScript.map((s) => graphOf(s).graph));

/**
 * The nodes in the order of one of two extremes of what lanes may do: corrections as early as what they read allows, or
 * as late as who reads them does.
 */
function inOrder(graph: Graph, early: boolean): readonly Graph["nodes"][number][] {
  const key = graph.nodes.map((_, i) => i);
  const indices = graph.nodes.map((_, i) => i);
  for (const i of early ? indices : indices.toReversed()) {
    const node = graph.nodes[i]!;
    if (!CORRECTION_OPS.has(node.op)) continue;
    const made = node.outputs.map((v) => v.name);
    const maker = graph.nodes.findIndex((n) => n.outputs.some((v) => v.name === node.inputs[0]));
    const reader = graph.nodes.findIndex((n) => reads(n).some((name) => made.includes(name)));
    key[i] = early ? key[maker]! + 0.01 : reader < 0 ? graph.nodes.length : key[reader]! - 0.01;
  }
  return indices.sort((a, b) => key[a]! - key[b]! || a - b).map((i) => graph.nodes[i]!);
}

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
  for (const early of [true, false]) {
    const lives = new Map<string, { readonly first: number; readonly last: number }>();
    inOrder(graph, early).forEach((node, time) => {
      for (const name of [...node.outputs.map((v) => v.name), ...reads(node)]) {
        const owner = home.get(name)?.allocation;
        if (owner === undefined) continue;
        lives.set(owner, { first: lives.get(owner)?.first ?? time, last: time });
      }
    });
    const blocks = [...lives].map(([name, life]) => {
      const from = memory.offsets[name]!;
      return { name, ...life, from, to: from + bytes.get(name)! };
    });
    for (const a of blocks) {
      assert.ok(a.from >= 0 && a.from % 64 === 0 && a.to <= memory.bytesPerToken);
      for (const b of blocks) {
        if (a === b || a.last < b.first || b.last < a.first) continue;
        assert.ok(a.to <= b.from || b.to <= a.from, `${a.name} and ${b.name} share memory while both live`);
      }
    }
  }
}

Deno.test("values that live at the same time do not overlap, in whatever order the lanes run", () => {
  fc.assert(
    fc.property(models, arbitraryChoices, (traced, choices) => {
      checkLayout(passes(traced, choices).schedule.graph);
    }),
    { numRuns: 60 },
  );
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
      assert.ok(life === undefined || (life.first <= i && i <= life.last), `${name} at node ${i}`);
    }
  });
});
