/** Parts of a lowered graph: what is left of it without some of its corrections. */
import type { Graph, Node } from "../../compiler/ir/graph.ts";
import { CORRECTION_OPS } from "../../compiler/ir/ops.ts";

/** The graph without nodes for which `drops` says so. Only deltas may be missed: readers go on without them. */
export function without(graph: Graph, drops: (node: Node) => boolean): Graph {
  const nodes = graph.nodes.filter((node) => !drops(node));
  const left = new Set(nodes.flatMap((node) => node.outputs.map((value) => value.name)));
  return {
    ...graph,
    nodes: nodes.map((node) =>
      node.added === undefined
        ? node
        : { ...node, added: node.added.map((deltas) => deltas.filter((delta) => left.has(delta))) }
    ),
  };
}

/** The backbone alone. */
export function withoutCorrections(graph: Graph): Graph {
  return without(graph, (node) => CORRECTION_OPS.has(node.op));
}
