/**
 * layout: where every value lies in the arena of a step, from liveness.
 *
 * Needs: stage "scheduled".
 * Guarantees: values that may be alive at the same time do not overlap, in whatever mode corrections run and however the
 *   lanes are interleaved. The outputs of a linear are columns of one [T, padded width] (`paddedOutputs`). Offsets are
 *   for one token and scale with the most tokens of a step. The device's arena and its twin in host memory have this one
 *   layout.
 *
 *   Why it holds. Seen from lane A, a node u of lane B runs somewhere within span(u) = [R, S]: R is the last node of A that
 *   B has waited for before u, S the first node of A that waits for u or for a later node of B. A node of A is its own
 *   span. Let an allocation be in use from the first to the last point of the spans of all who touch it. If X's use ends
 *   before Y's begins, whoever touches X (u) is done before whoever touches Y (v) begins:
 *     u, v in A: A runs in order.                         u in B, v in A: v comes after S, which waited for u.
 *     u in A, v in B: v waited for R, which comes after u.
 *     u, v in B: S(u) waited for u, R(v) comes after it in A, v waited for R(v).
 *   So two allocations that are apart by the clock of either lane may share memory. Lanes have barriers between nodes,
 *   but in line on one device a window's choice of channels, its linear and its sums run without: there spans by the
 *   backbone's clock, which begin before all three and end behind them, are what counts. A step ends when both lanes have.
 *   With a GPU, steps run different nodes in different lanes (steps.ts): what shares memory is apart in each of them.
 * Does not: place the step's inputs, the cache or the logits, which are segments of their own (../memory.ts).
 */
import { type Graph, type Lane, laneOf, reads, usesGpu } from "../ir/graph.ts";
import { paddedOutputs } from "../ir/naming.ts";
import { arraysOf, elementsPerToken } from "../ir/types.ts";
import type { MemoryLayout } from "../plan.ts";
import { meetings } from "./schedule.ts";
import { stepGraphs } from "./steps.ts";

/** Offsets and sizes per token are multiples of this, so that they stay aligned for every T. */
const ALIGNMENT = 64;

/** Between which nodes something is in use by the clock of a lane, inclusive. */
export interface Span {
  readonly first: number;
  readonly last: number;
}

/** A block of memory. */
export interface Allocation {
  /** The value that it is named after. */
  readonly name: string;
  /** Per token. */
  readonly bytes: number;
  /** When it is in use: in each graph of a step that uses it, by each clock that decides (`lanesOf`). */
  readonly uses: readonly Use[];
}

/** By clock; undefined in a step without it. */
type Use = readonly Span[] | undefined;

/** Where a value lies: columns of an allocation's rows, or, where that is undefined, the logits. */
export interface Home {
  readonly allocation: string | undefined;
  /** First column, and floats between rows; 0 and its own width where it is no column of a wider row. */
  readonly column: number;
  readonly stride: number;
}

export function layout(graph: Graph): MemoryLayout {
  /** By offset. */
  const placed: { readonly offset: number; readonly bytes: number; readonly times: Int32Array }[] = [];
  const offsets: [string, number][] = [];
  let bytesPerToken = 0;
  // Largest first, each at the lowest offset that is free while it lives.
  const clocks = lanesOf(graph).length;
  const begin = ({ uses: [spans] }: Allocation) => spans?.[0]?.first ?? 0;
  for (const allocation of allocations(graph).sort((a, b) => b.bytes - a.bytes || begin(a) - begin(b))) {
    const { name, bytes } = allocation;
    const times = timesOf(allocation);
    let offset = 0;
    for (const other of placed) {
      if (other.offset + other.bytes <= offset || areApart(times, other.times, clocks)) continue;
      if (offset + bytes <= other.offset) break;
      offset = Math.max(offset, other.offset + other.bytes);
    }
    const behind = placed.findLastIndex((other) => other.offset <= offset) + 1;
    placed.splice(behind, 0, { offset, bytes, times });
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

/** First and last of every use, step by step and clock by clock; of a step without one, a use that is over before it begins. */
function timesOf({ uses }: Allocation): Int32Array {
  const clocks = Math.max(...uses.map((spans) => spans?.length ?? 0));
  const never = Array.from({ length: clocks }, (): Span => ({ first: 2 ** 31 - 1, last: -1 }));
  return Int32Array.from(
    uses.flatMap((spans) => (spans ?? never).flatMap(({ first, last }) => [first, last])),
  );
}

/** Whether two allocations are apart by one of the clocks, in each step. The loop that most of the time goes to. */
function areApart(a: Int32Array, b: Int32Array, clocks: number): boolean {
  for (let step = 0; step < a.length; step += 2 * clocks) {
    let isApart = false;
    for (let at = step; at < step + 2 * clocks; at += 2) {
      isApart ||= a[at + 1]! < b[at]! || b[at + 1]! < a[at]!;
    }
    if (!isApart) return false;
  }
  return true;
}

/** The span of every node by the clock of `lane`. */
function spansOf(graph: Graph, lane: Lane): Span[] {
  const withGpu = usesGpu(graph);
  const met = meetings(graph);
  const isOwn = graph.nodes.map((node) => laneOf(node, withGpu) === lane);
  const waitedFor = new Map(met.map(({ producer, reader }) => [reader, producer]));
  /** Nodes of `lane` that wait for another lane, and what for. */
  const waiting = met.filter(({ reader }) => isOwn[reader]);
  let [first, next] = [0, 0];
  return graph.nodes.map((_, i): Span => {
    if (isOwn[i]) return { first: i, last: i };
    first = waitedFor.get(i) ?? first;
    while ((waiting[next]?.producer ?? Infinity) < i) next++;
    return { first, last: waiting[next]?.reader ?? graph.nodes.length };
  });
}

/** The lanes whose clocks decide who may share memory: what is apart by one of them is. */
function lanesOf(graph: Graph): readonly Lane[] {
  return usesGpu(graph) ? ["backbone", "compensation"] : ["backbone"];
}

/** All blocks, and when each is in use. */
export function allocations(graph: Graph): Allocation[] {
  const where = homes(graph);
  const bytes = new Map<string, number>();
  for (const node of graph.nodes) {
    for (const { name, type } of node.outputs) {
      const home = where.get(name);
      if (home?.allocation === undefined) continue;
      const arrays = Object.values(arraysOf(type)).reduce((sum, array) => sum + array, 0);
      const size = type.dtype === "f32" ? 4 * home.stride : arrays;
      bytes.set(home.allocation, Math.max(bytes.get(home.allocation) ?? 0, align(size)));
    }
  }
  const steps = stepGraphs(graph).map((step) => usesIn(step, where));
  return [...bytes].map(([name, size]) => ({ name, bytes: size, uses: steps.map((uses) => uses.get(name)) }));
}

/** When allocations are in use in a step, by each clock. */
function usesIn(step: Graph, where: ReturnType<typeof homes>): ReadonlyMap<string, readonly Span[]> {
  const clocks = lanesOf(step).map((lane) => spansOf(step, lane));
  const uses = new Map<string, readonly Span[]>();
  step.nodes.forEach((node, i) => {
    for (const name of [...reads(node), ...node.outputs.map((v) => v.name)]) {
      const owner = where.get(name)?.allocation;
      if (owner === undefined) continue;
      const before = uses.get(owner);
      const use = clocks.map((clock, n): Span => {
        const { first, last } = clock[i] ?? { first: i, last: i };
        const known = before?.[n] ?? { first, last };
        return { first: Math.min(known.first, first), last: Math.max(known.last, last) };
      });
      uses.set(owner, use);
    }
  });
  return uses;
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
