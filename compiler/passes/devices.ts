/**
 * Which nodes run on the GPU: everything that fits. What does not is spilled to the CPU by whole layers, from the first
 * one on, together with the embedding and before any layer: a step then goes from the CPU to the GPU once, and its logits,
 * which come back in any case, are made by the head, the largest matrix of all, on the device that reads fastest. Of the
 * embedding a token reads one row, so its table is the last that deserves the GPU's memory. Layers from the end would cross
 * once, too, but take the head with them; layers in the middle cross twice.
 *
 * The unit of placement is a layer: attention and its cache, and every value between two norms, stay on one device.
 */
import { costs, withCost } from "../cost.ts";
import { HcinferError } from "../errors.ts";
import type { Device, Graph, Node } from "../ir/graph.ts";
import { layerOf, packedName } from "../ir/naming.ts";
import { CORRECTION_OPS } from "../ir/ops.ts";
import { isLowered } from "../ir/verify.ts";
import { type Limits, memoryOf, memoryText } from "../memory.ts";
import type { MemoryLayout, Plan } from "../plan.ts";
import type { GpuProfile, MachineProfile } from "../profile.ts";
import { layout } from "./layout.ts";

/** "auto": the GPU where the machine has one. */
export type DeviceChoice = "auto" | Device;

export interface DeviceOptions {
  readonly profile: MachineProfile;
  /** Threads of the CPU that predictions assume; default: all cores. */
  readonly threads?: number;
  /** Default "auto". */
  readonly device?: DeviceChoice;
  /** Bytes of the GPU's memory that may be taken, in all. Default: `usableMemory`. */
  readonly gpuMemory?: number;
  /** What the plan is made for; how much cache and how many activations there are follows from it. */
  readonly limits: Required<Limits>;
  /**
   * Devices of single nodes, by the name of an output value, or of all nodes whose weights lie under a module path
   * (`model.layers.3`). The longest match counts, before anything else does.
   */
  readonly overrides?: ReadonlyMap<string, Device>;
}

/** Where nodes go, by their part of the model, and why. */
export interface Placed {
  readonly spilled: ReadonlySet<Part>;
  readonly cause: (part: Part) => string;
}

/** A layer, or what stands before the first or behind the last. */
export type Part = number | "embedding" | "head";

/** What a driver keeps for a context, and what others may hold of a GPU that also draws a screen. */
const RESERVED_SHARE = 0.06;
const RESERVED_BYTES = 2 ** 28;

/** The memory that a plan may take when nothing else is said: all but 6 % and 256 MiB. */
export function usableMemory(gpu: GpuProfile): number {
  return Math.max(0, Math.floor(gpu.memory * (1 - RESERVED_SHARE)) - RESERVED_BYTES);
}

/**
 * Whether there is a GPU to use, and its limit.
 *
 * @throws {HcinferError} "usage": a GPU is asked for and there is none, or options contradict each other
 */
export function gpuLimit(
  { profile, device = "auto", gpuMemory }: Pick<DeviceOptions, "profile" | "device" | "gpuMemory">,
): number | undefined {
  const { gpu } = profile;
  const refuse = (message: string) => new HcinferError("usage", message);
  if (gpu === undefined && device === "gpu") {
    throw refuse(
      `the device gpu was asked for, and the machine ${profile.name} has none; use cpu, or another profile`,
    );
  }
  if (gpuMemory === undefined) return gpu === undefined || device === "cpu" ? undefined : usableMemory(gpu);
  const limit = memoryText(gpuMemory);
  if (!(gpuMemory > 0)) throw refuse(`a GPU memory of ${gpuMemory} bytes: expected more than 0`);
  if (device === "cpu") {
    throw refuse(`a GPU memory of ${limit} is given, and the device cpu: leave one of them out`);
  }
  if (gpu === undefined) {
    throw refuse(`a GPU memory of ${limit} is given, and the machine ${profile.name} has no GPU`);
  }
  if (gpuMemory > gpu.memory) {
    throw refuse(`a GPU memory of ${limit} is given, and the ${gpu.name} has ${memoryText(gpu.memory)}`);
  }
  return gpuMemory;
}

/**
 * Where the parts of a lowered graph go: on the GPU as many as its memory holds, counted by the one allocator.
 *
 * @param windows what they store, of which prompts may stream some
 * @throws {HcinferError} "usage": not even the last layer and the head fit, and the GPU or its memory was asked for
 */
export function chooseDevices(graph: Graph, windows: Plan["windows"], options: DeviceOptions): Placed {
  const limit = gpuLimit(options);
  const { profile, limits, device, gpuMemory } = options;
  const parts = [...new Set(partsOf(graph))];
  const cpuAlone = (why: string): Placed => ({ spilled: new Set(parts), cause: () => `cpu: ${why}` });
  if (limit === undefined) {
    return cpuAlone(profile.gpu === undefined ? "the only device" : "the GPU was not asked for");
  }
  const layers = parts.filter((part) => typeof part === "number").sort((a, b) => a - b);
  const order: readonly Part[] = ["embedding", ...layers.slice(0, -1)];
  const prefill = graph.nodes.some((node) => CORRECTION_OPS.has(node.op)) ? "stream" : "none";
  const spilling = (count: number) =>
    withDevices(graph, { spilled: new Set(order.slice(0, count)), cause: () => "" }, options);
  const arenas = new Map<number, MemoryLayout>();
  const arenaOf = (count: number): MemoryLayout => {
    const arena = arenas.get(count) ?? layout(spilling(count));
    arenas.set(count, arena);
    return arena;
  };
  /** With the arena of another number of spilled parts it is an estimate, close and cheap. */
  const taken = (count: number, memory = arenaOf(count)): number =>
    memoryOf({ graph: spilling(count), memory, windows, corrections: { prefill } }, limits).device?.total ??
      0;

  if (taken(0) <= limit) return { spilled: new Set(), cause: () => "gpu: it fits" };
  const most = order.length;
  if (taken(most) > limit) {
    const what =
      `the smallest plan on the GPU, its head${layers.length > 0 ? " and one layer" : ""}, takes ` +
      `${memoryText(taken(most))} with a context of ${limits.contextLength} tokens`;
    if (device !== "gpu" && gpuMemory === undefined) {
      return cpuAlone(`${what}, and the GPU has ${memoryText(limit)} to give`);
    }
    const allowed = `${memoryText(limit)} of GPU memory are allowed`;
    const advice = "allow as much, shorten the context, or use the CPU";
    throw new HcinferError("usage", `${allowed}, and ${what}: ${advice}`);
  }
  // More spilled layers take less; the estimate may be a layer off.
  let [fits, doesNot] = [most, 0];
  while (fits - doesNot > 1) {
    const middle = (fits + doesNot) >> 1;
    if (taken(middle, arenaOf(most)) <= limit) fits = middle;
    else doesNot = middle;
  }
  while (taken(fits) > limit) fits++;
  while (fits > 1 && taken(fits - 1) <= limit) fits--;

  const spilled = new Set(order.slice(0, fits));
  const use = `${memoryText(taken(fits))} of ${memoryText(limit)} are taken`;
  const cause = (part: Part): string => {
    if (!spilled.has(part)) return "gpu: it fits";
    if (part === "embedding" && fits > 1) return `cpu: before layers that do not fit: ${use}`;
    const what = typeof part === "number" ? `layer ${part} of ${layers.length}` : `the ${part}`;
    return `cpu: ${what} does not fit: ${use}`;
  };
  return { spilled, cause };
}

/** A graph of any stage with its nodes on their devices; corrections stay on the CPU, and attention is where its cache is. */
export function withDevices(graph: Graph, placed: Placed, options: DeviceOptions): Graph {
  const { profile, threads = profile.cpu.cores, overrides } = options;
  const allCosts = costs(graph);
  const parts = partsOf(graph);
  const chosen = new Map<string, readonly [Device, string]>();
  let before: readonly [Device, string] | undefined;
  const nodes = graph.nodes.map((node, i): Node => {
    const cost = allCosts[i];
    const part = parts[i];
    if (cost === undefined || part === undefined) return node;
    if (CORRECTION_OPS.has(node.op)) {
      return { ...node, placement: withCost({ ...node.placement, device: "cpu" }, cost, profile, threads) };
    }
    const key = overrideOf(node, overrides);
    const forced = key === undefined ? undefined : overrides?.get(key);
    const own: readonly [Device, string] = [placed.spilled.has(part) ? "cpu" : "gpu", placed.cause(part)];
    const cache = node.op === "attend" ? chosen.get(node.inputs[0] ?? "") : undefined;
    const choice = cache ?? (forced !== undefined
      ? [forced, `${forced}: override of ${key}`] as const
      // Without weights of its own it stays with who is before it in its part.
      : ownPath(node) === undefined && before !== undefined && parts[i - 1] === part
      ? before
      : own);
    for (const { name } of node.outputs) chosen.set(name, choice);
    before = choice;
    const [device, cause] = choice;
    const causes = caused(node, cause, isLowered(graph.stage));
    return { ...node, placement: withCost({ ...node.placement, device, causes }, cost, profile, threads) };
  });
  return { ...graph, nodes };
}

/** A node's causes with that of its device, in place of an older one; what `lower` made for another node has none. */
function caused({ placement: { causes } }: Node, cause: string, lowered: boolean): string[] {
  const at = causes.findIndex((text) => /^[cg]pu: /.test(text));
  return at >= 0 ? causes.with(at, cause) : lowered ? [...causes] : [...causes, cause];
}

/** The override of a node that counts. */
export function overrideOf(node: Node, overrides: DeviceOptions["overrides"]): string | undefined {
  return [...overrides?.keys() ?? []]
    .filter((key) =>
      node.outputs.some((v) => v.name === key) ||
      paths(node).some((p) => p === key || p.startsWith(key + "."))
    )
    .sort((a, b) => b.length - a.length)[0];
}

/** Module paths of what a node reads; none for nodes without weights. */
export function paths(node: Node): readonly string[] {
  switch (node.op) {
    case "linear":
      return [...node.params.weights.map((w) => w.path), packedName(node.params.weights)];
    case "embedding":
    case "rms_norm":
    case "add_rms_norm":
      return [node.params.path];
    default:
      return [];
  }
}

function ownPath(node: Node): string | undefined {
  return paths(node)[0];
}

/** The part of every node; nodes without weights belong to that of the node before. */
export function partsOf(graph: Graph): Part[] {
  const first = graph.nodes.findIndex((node) => layerOf(ownPath(node) ?? "") !== undefined);
  let part: Part = "embedding";
  return graph.nodes.map((node, i) => {
    const path = ownPath(node);
    if (path === undefined) return part;
    return part = layerOf(path) ?? (node.op === "embedding" || i < first ? "embedding" : "head");
  });
}
