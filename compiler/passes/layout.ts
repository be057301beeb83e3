/**
 * layout: where every value lies in the arena of a step, from liveness.
 *
 * Needs: stage "scheduled".
 * Guarantees: values that are alive at the same time do not overlap, in whatever mode corrections run: what they read and
 *   make is alive from their fork to the first node that adds their deltas, so it may be made beside the backbone, or in
 *   line without a barrier beside its window's linear. The outputs of a linear are columns of one [T, padded width]
 *   (`paddedOutputs`). Offsets are for one token and scale with the most tokens of a step.
 * Does not: place the step's inputs, the cache or the logits, which are segments of their own (../memory.ts).
 */
import type { Graph } from "../ir/graph.ts";
import { reads } from "../ir/graph.ts";
import { paddedOutputs } from "../ir/naming.ts";
import { arraysOf, elementsPerToken } from "../ir/types.ts";
import type { MemoryLayout } from "../plan.ts";
import { flights, windowOf } from "./schedule.ts";

/** Offsets and sizes per token are multiples of this, so that they stay aligned for every T. */
const ALIGNMENT = 64;

/** A block of memory: `first` and `last` are the nodes between which it is in use, inclusive. */
export interface Allocation {
  /** The value that it is named after. */
  readonly name: string;
  /** Per token. */
  readonly bytes: number;
  readonly first: number;
  readonly last: number;
}

/** Where a value lies: columns of an allocation's rows, or, where that is undefined, the logits. */
export interface Home {
  readonly allocation: string | undefined;
  /** First column, and floats between rows; 0 and its own width where it is no column of a wider row. */
  readonly column: number;
  readonly stride: number;
}

export function layout(graph: Graph): MemoryLayout {
  /** By offset. */
  const placed: (Allocation & { readonly offset: number })[] = [];
  const offsets: [string, number][] = [];
  let bytesPerToken = 0;
  // Largest first, each at the lowest offset that is free while it lives.
  for (const allocation of allocations(graph).sort((a, b) => b.bytes - a.bytes || a.first - b.first)) {
    const { name, bytes, first, last } = allocation;
    let offset = 0;
    for (const other of placed) {
      if (other.first > last || first > other.last) continue;
      if (offset + bytes <= other.offset) break;
      offset = Math.max(offset, other.offset + other.bytes);
    }
    const behind = placed.findLastIndex((other) => other.offset <= offset) + 1;
    placed.splice(behind, 0, { ...allocation, offset });
    offsets.push([name, offset]);
    bytesPerToken = Math.max(bytesPerToken, offset + bytes);
  }
  return { bytesPerToken, offsets: Object.fromEntries(offsets) };
}

/** Where each value that a node makes lies. */
export function homes(graph: Graph): ReadonlyMap<string, Home> {
  const found = new Map<string, Home>();
  for (const node of graph.nodes) {
    const [first] = node.outputs;
    const isLogits = first !== undefined && graph.outputs.includes(first.name);
    if (node.op === "linear" && first !== undefined && !(isLogits && node.outputs.length === 1)) {
      const { total, firstColumn } = paddedOutputs(node.params.weights);
      node.outputs.forEach((value, i) =>
        found.set(value.name, { allocation: first.name, column: firstColumn[i] ?? 0, stride: total })
      );
      continue;
    }
    for (const value of node.outputs) {
      const allocation = graph.outputs.includes(value.name) ? undefined : value.name;
      found.set(value.name, { allocation, column: 0, stride: elementsPerToken(value.type) });
    }
  }
  return found;
}

/** When each allocation is in use, over the nodes in graph order. */
export function allocations(graph: Graph): Allocation[] {
  const where = homes(graph);
  const bytes = new Map<string, number>();
  const first = new Map<string, number>();
  const last = new Map<string, number>();
  const use = (name: string, from: number, to: number) => {
    const owner = where.get(name)?.allocation;
    if (owner === undefined) return;
    first.set(owner, Math.min(first.get(owner) ?? from, from));
    last.set(owner, Math.max(last.get(owner) ?? to, to));
  };
  const windows = flights(graph);
  graph.nodes.forEach((node, i) => {
    for (const { name, type } of node.outputs) {
      const home = where.get(name);
      if (home?.allocation === undefined) continue;
      const arrays = Object.values(arraysOf(type)).reduce((sum, array) => sum + array, 0);
      const size = type.dtype === "f32" ? 4 * home.stride : arrays;
      bytes.set(home.allocation, Math.max(bytes.get(home.allocation) ?? 0, align(size)));
    }
    const flight = windows.get(windowOf(node) ?? "");
    const [from, to] = flight === undefined ? [i, i] : [Math.max(0, flight.fork), Math.max(i, flight.merge)];
    for (const name of [...reads(node), ...node.outputs.map((v) => v.name)]) use(name, from, to);
  });
  return [...bytes].map(([name, size]) => ({
    name,
    bytes: size,
    first: first.get(name) ?? 0,
    last: last.get(name) ?? 0,
  }));
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
