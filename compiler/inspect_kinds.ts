/**
 * Where a decode step's time and bytes go: the nodes of a lowered graph by kind. What was measured on a machine is told apart
 * by the same kinds (cli/inspect_measure.ts), so that the two stand beside each other.
 */
import { costs } from "./cost.ts";
import type { Graph, Node } from "./ir/graph.ts";
import { CORRECTION_OPS, type Op } from "./ir/ops.ts";
import type { Timeline } from "./timeline.ts";

/** The nodes of one kind in a step of one token. */
export interface PredictedKind {
  readonly kind: string;
  readonly nodes: number;
  /** Weights, corrections with what they are chosen by, and cached keys and values. */
  readonly bytesRead: number;
  /** Busy, on whatever lane: kinds that run beside each other add up to more than the step. */
  readonly microseconds: number;
}

/** Attention in a lowered graph: queries and keys made ready, then the sums over the cache. */
export const ATTENTION_OPS: ReadonlySet<Op> = new Set<Op>(["append", "attend"]);

/** The kind of a window: `gate_up` of `3.gate_up`. */
export function windowKind(window: string): string {
  return window.replace(/^\d+\./, "");
}

/** A linear's kind is its window's (`qkv`); linears outside windows are the output head. */
export function nodeKind(node: Node): string {
  if (CORRECTION_OPS.has(node.op)) return "corrections";
  if (ATTENTION_OPS.has(node.op)) return "attention";
  if (node.op !== "linear") return "norms and the rest";
  return node.params.window === undefined ? "output head" : windowKind(node.params.window);
}

/** The kinds of the nodes that a timeline of the graph runs, what takes longest first. */
export function kindsOf(graph: Graph, { steps }: Pick<Timeline, "steps">): PredictedKind[] {
  const nodeCosts = costs(graph);
  const kinds = new Map<string, PredictedKind>();
  for (const { node, start, end } of steps) {
    const kind = nodeKind(graph.nodes[node]!);
    const { nodes, bytesRead, microseconds } = kinds.get(kind) ?? { nodes: 0, bytesRead: 0, microseconds: 0 };
    kinds.set(kind, {
      kind,
      nodes: nodes + 1,
      bytesRead: bytesRead + nodeCosts[node]!.bytesRead,
      microseconds: microseconds + end - start,
    });
  }
  return [...kinds.values()]
    .map((kind) => ({ ...kind, microseconds: Math.round(kind.microseconds * 10) / 10 }))
    .sort((a, b) => b.microseconds - a.microseconds);
}
