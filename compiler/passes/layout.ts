/**
 * layout: where every value lies in the arena of a step, from liveness.
 *
 * Needs: stage "scheduled".
 * Guarantees: values that are alive at the same time do not overlap, also when the lanes run at the same time: a fork's
 *   value stays until its merge, a delta has its memory from the fork until the last reader of the merge. The
 *   values of one allocation:
 *     - the outputs of a linear are columns of one [T, padded width] (`paddedOutputs`); all have its offset;
 *     - a view lies where its input lies, a merge where its linear lies (it may be done in place or by its readers).
 * Does not: place graph inputs (i32, the caller's) and graph outputs (logits, made only for the rows asked for), or the
 *   scratch of kernels.
 */
import { type Graph, type Node, producers } from "../ir/graph.ts";
import { paddedOutputs } from "../ir/naming.ts";
import { VIEW_OPS } from "../ir/ops.ts";
import { elementsPerToken } from "../ir/types.ts";
import type { MemoryLayout } from "../plan.ts";

export { paddedOutputs };

/** Offsets and sizes per token are multiples of this, so that they stay aligned for every T. */
const ALIGNMENT = 64;

/** A block of memory: `first` and `last` are the nodes between which it is in use, inclusive. */
export interface Allocation {
  /** The value that it is named after. */
  readonly name: string;
  readonly bytes: number;
  readonly first: number;
  readonly last: number;
}

export interface Liveness {
  readonly allocations: readonly Allocation[];
  /** The allocation that each value lies in. */
  readonly home: ReadonlyMap<string, string>;
}

export function layout(graph: Graph): MemoryLayout {
  const { allocations, home } = liveness(graph);
  const placed: (Allocation & { offset: number })[] = [];
  let bytesPerToken = 0;
  // Largest first, each at the lowest offset that is free while it lives.
  for (const allocation of [...allocations].sort((a, b) => b.bytes - a.bytes || a.first - b.first)) {
    const taken = placed
      .filter((other) => other.first <= allocation.last && allocation.first <= other.last)
      .sort((a, b) => a.offset - b.offset);
    let offset = 0;
    for (const other of taken) {
      if (offset + allocation.bytes <= other.offset) break;
      offset = Math.max(offset, other.offset + other.bytes);
    }
    placed.push({ ...allocation, offset });
    bytesPerToken = Math.max(bytesPerToken, offset + allocation.bytes);
  }
  const offsets = new Map(placed.map((p) => [p.name, p.offset]));
  return {
    bytesPerToken,
    offsets: Object.fromEntries([...home].map(([name, owner]) => [name, offsets.get(owner) ?? 0])),
  };
}

/** When each allocation is in use, over the order of the backbone lane. */
export function liveness(graph: Graph): Liveness {
  const outside = new Set([...graph.inputs.map((v) => v.name), ...graph.outputs]);
  const home = new Map<string, string>();
  const bytes = new Map<string, number>();
  for (const node of graph.nodes) {
    const [own, size] = allocationOf(node, home);
    if (own === undefined || node.outputs.some((v) => outside.has(v.name))) continue;
    for (const value of node.outputs) {
      const name = own === "each" ? value.name : own;
      home.set(value.name, name);
      if (size !== 0) bytes.set(name, align(size ?? 4 * elementsPerToken(value.type)));
    }
  }
  const first = new Map<string, number>();
  const last = new Map<string, number>();
  const use = (name: string, index: number) => {
    const owner = home.get(name);
    if (owner === undefined) return;
    first.set(owner, Math.min(first.get(owner) ?? index, index));
    last.set(owner, Math.max(last.get(owner) ?? index, index));
  };
  graph.nodes.forEach((node, index) => {
    for (const value of node.outputs) use(value.name, index);
    for (const name of node.inputs) use(name, index);
  });
  // What crosses lanes. The compensation lane may run as soon as the fork's value is made and until the merge.
  const makers = producers(graph);
  const index = new Map(graph.nodes.map((node, i) => [node, i]));
  const forks = new Map<string, string>();
  graph.nodes.forEach((node, i) => {
    if (node.op === "low_rank" || node.op === "sparse_residual") {
      const fork = node.inputs[0] ?? "";
      forks.set(node.params.window, fork);
      const made = index.get(makers.get(fork) as Node) ?? 0;
      for (const value of node.outputs) use(value.name, made);
    } else if (node.op === "merge") {
      use(forks.get(node.params.window) ?? "", i);
    }
  });
  graph.nodes.forEach((node, i) => {
    if (node.op !== "merge") return;
    const owner = home.get(node.outputs[0]?.name ?? "") ?? "";
    for (const delta of node.inputs.slice(-node.params.deltas)) use(delta, last.get(owner) ?? i);
  });
  return {
    allocations: [...bytes].map(([name, size]) => ({
      name,
      bytes: size,
      first: first.get(name) ?? 0,
      last: last.get(name) ?? 0,
    })),
    home,
  };
}

/**
 * The allocation a node's outputs lie in: "each" its own, or the named one for all; and its size in bytes per token, 0
 * where it exists already, undefined for the value's own size.
 */
function allocationOf(
  node: Node,
  home: ReadonlyMap<string, string>,
): [own: string | undefined, size?: number] {
  if (node.op === "linear") return [node.outputs[0]?.name, 4 * paddedOutputs(node.params.weights).total];
  if (node.op === "merge" || VIEW_OPS.has(node.op)) return [home.get(node.inputs[0] ?? ""), 0];
  return ["each"];
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
