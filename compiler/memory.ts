/**
 * The memory of a running plan, device by device and segment by segment: what `inspect` predicts, the null executor
 * reports, `place` fits into a limit and executors allocate are this.
 *
 * With a GPU both devices have an arena, rotation tables and the step's inputs, at the same offsets: the host's arena is
 * pinned and is where lanes read from each other. A layer's cache is where its `append` is.
 */
import { HcinferError } from "./errors.ts";
import { type Device, type Graph, type Node, usesGpu, values } from "./ir/graph.ts";
import { elementsPerToken } from "./ir/types.ts";
import { eventsOf } from "./passes/schedule.ts";
import { stepGraphs } from "./passes/steps.ts";
import type { ModelInfo, Plan } from "./plan.ts";
import { packedShape, ROW_BLOCK } from "./weights/format.ts";
import { inventory } from "./weights/inventory.ts";

/** Positions of the key-value cache that are allocated, shared and freed together. A multiple of 16. */
export const PAGE_POSITIONS = 64;
/** Most runs of one step: rows of its page table. */
export const MOST_RUNS = 64;
/** Bytes of the mailbox before its events: the abort flag (u32 at 0) and the step's number (u64 at 64). */
export const MAILBOX_EVENTS = 128;
/** An event has a cache line of its own; a lane publishes the step's number there (u64). */
export const EVENT_BYTES = 64;
/** Head of the step's inputs where there is a GPU: StepReport in ffi/cuda/kernels/call.h. */
export const STEP_REPORT_BYTES = 64;
/** Two pinned buffers of this size carry weights to the GPU while they load. */
export const LOADING_BYTES = 2 ** 24;
/** Positions that a kernel of attention sees at once; results of several such chunks are merged. */
export const ATTENTION_CHUNK = 256;
/** What kernels of attention ask for at most, to keep the results of chunks. */
export const ATTENTION_SCRATCH = 2 ** 25;

const CACHE_LINE = 64;
/** Of a window's residual and factors. */
const MOST_TENSORS = 9;

/** What decides how much memory a plan takes. */
export interface Limits {
  /** Most tokens in one step. */
  readonly capacity: number;
  /** Most tokens in one sequence. */
  readonly contextLength: number;
  /** Most positions that all sequences hold together, in whole pages. Default: `contextLength`. */
  readonly cachePositions?: number;
}

/** Tokens a step: enough that unpacking a weight costs little beside its products, few enough for the caches. */
const DEFAULT_CAPACITY = 512;
/** The cache of a longer context would be mapped, not touched; its rotation tables would have to be computed. */
const DEFAULT_CONTEXT = 32_768;

/** The cache on a GPU is allocated, and what it takes is taken from layers. */
const DEFAULT_GPU_CONTEXT = 8192;

/**
 * The limits of whoever runs or predicts a model: what was asked for, or the defaults. A step is never longer than the
 * context.
 * @param withGpu whether the plan has nodes on a GPU, where less is the default
 * @throws {HcinferError} "usage": a context the model was not made for, or a limit below 1
 */
export function limitsOf(
  model: Pick<ModelInfo, "contextLength" | "name">,
  asked: Partial<Limits> = {},
  withGpu = false,
): Required<Limits> {
  const most = withGpu ? DEFAULT_GPU_CONTEXT : DEFAULT_CONTEXT;
  const { contextLength = Math.min(model.contextLength, most) } = asked;
  const { capacity = DEFAULT_CAPACITY, cachePositions = contextLength } = asked;
  const isWhole = (n: number) => Number.isSafeInteger(n) && n >= 1;
  if (!isWhole(contextLength) || contextLength > model.contextLength) {
    throw new HcinferError(
      "usage",
      `a context of ${contextLength} tokens: expected 1 to ${model.contextLength}, the longest ${model.name} was ` +
        "made for",
    );
  }
  if (!isWhole(capacity)) {
    throw new HcinferError("usage", `a step of ${capacity} tokens: expected at least 1`);
  }
  if (!isWhole(cachePositions)) {
    throw new HcinferError("usage", `a cache of ${cachePositions} positions: expected at least 1`);
  }
  return { capacity: Math.min(capacity, contextLength), contextLength, cachePositions };
}

/**
 * Keys and values of one layer: byte offsets into its device's cache, each [pages, kvHeads, PAGE_POSITIONS, headDim] f16.
 */
export interface LayerCache {
  readonly device: Device;
  readonly k: number;
  readonly v: number;
  /** Bytes of one page, of keys and of values alike. */
  readonly pageBytes: number;
}

/** What a rope table becomes, f32 [context, headDim / 2] each: byte offsets of cosines and sines. */
export interface Rotation {
  readonly cosines: number;
  readonly sines: number;
}

/** Byte offsets of what a step reads: i32 arrays. */
export interface StepInputs {
  /** [capacity] each: token ids, positions, rows of the page table, tokens whose logits are wanted. */
  readonly tokens: number;
  readonly positions: number;
  readonly sequences: number;
  readonly rows: number;
  /** [capacity, 2]: first token and count of tokens that follow each other in a sequence. */
  readonly tiles: number;
  /** [MOST_RUNS, mostPages]. */
  readonly pages: number;
}

/** Bytes of the host's memory. */
export type HostBytes = {
  /** Read on the CPU; a weight that only the GPU reads is mapped while it loads, and not counted. */
  readonly weights: number;
  readonly corrections: number;
  readonly cache: number;
  readonly tables: number;
  readonly arena: number;
  readonly step: number;
  readonly mailbox: number;
  /** f32 [capacity, vocabulary]; only the rows that a step writes are ever touched. A GPU writes them here, too. */
  readonly logits: number;
  /** Pinned, for what goes to the GPU: weights while they load, then what prompts stream; 0 without one. */
  readonly staging: number;
};

/** Bytes of the GPU's memory, each in whole cache lines. */
export type DeviceBytes = {
  readonly weights: number;
  readonly cache: number;
  readonly tables: number;
  readonly arena: number;
  /** The step's inputs as on the host, then `arrivals`. */
  readonly step: number;
  /** Of the kernel that asks for most; kernels use it one after the other. */
  readonly scratch: number;
  /** Two windows' residuals and factors, on their way through a prompt. */
  readonly staging: number;
  readonly total: number;
};

export interface Memory {
  readonly limits: Required<Limits>;
  /** Pages of one sequence at most, and of the cache. */
  readonly mostPages: number;
  readonly mostRuns: number;
  readonly pageCount: number;
  readonly caches: ReadonlyMap<number, LayerCache>;
  /** By the name of the rope table. */
  readonly rotations: ReadonlyMap<string, Rotation>;
  readonly inputs: StepInputs;
  readonly bytes: HostBytes;
  /** Null where no node is on the GPU. */
  readonly device: DeviceBytes | null;
  /** Tensors of weights.safetensors that the GPU reads: byte offsets into its weights. */
  readonly deviceTensors: ReadonlyMap<string, number>;
  /** Byte offset in the GPU's step of u32 [events]: blocks of an event's kernel that are done. */
  readonly arrivals: number;
}

/** What memory follows from. */
export type MemoryOf = Pick<Plan, "graph" | "memory" | "windows"> & {
  readonly corrections: Pick<Plan["corrections"], "prefill">;
};

export function memoryOf(plan: MemoryOf, limits: Required<Limits>): Memory {
  const { capacity, contextLength, cachePositions } = limits;
  const { graph } = plan;
  const withGpu = usesGpu(graph);
  const types = values(graph);
  const mostPages = Math.ceil(contextLength / PAGE_POSITIONS);
  const pageCount = Math.ceil(cachePositions / PAGE_POSITIONS);
  const cache = { cpu: new Segment(), gpu: new Segment() }, tables = new Segment(), step = new Segment();
  const caches = new Map<number, LayerCache>();
  const rotations = new Map(graph.ropes.map(({ name, frequencies }): [string, Rotation] => {
    const bytes = 4 * contextLength * frequencies.length;
    return [name, { cosines: tables.take(bytes), sines: tables.take(bytes) }];
  }));
  for (const node of graph.nodes) {
    if (node.op !== "append") continue;
    const pageBytes = 2 * PAGE_POSITIONS * elementsPerToken(types.get(node.inputs[1] ?? "")!.type);
    const bytes = pageCount * pageBytes;
    const { device = "cpu" } = node.placement;
    const own = cache[device];
    caches.set(node.params.layer, { device, k: own.take(bytes), v: own.take(bytes), pageBytes });
  }
  if (withGpu) step.take(STEP_REPORT_BYTES);
  const array = (elements: number) => step.take(4 * elements);
  const inputs = {
    tokens: array(capacity),
    positions: array(capacity),
    sequences: array(capacity),
    rows: array(capacity),
    tiles: array(2 * capacity),
    pages: array(MOST_RUNS * mostPages),
  };
  const events = Math.max(...stepGraphs(graph).map((step) => eventsOf(step).size));
  const output = types.get(graph.outputs[0] ?? "");
  const arena = plan.memory.bytesPerToken * capacity;
  const logits = 4 * capacity * (output === undefined ? 0 : elementsPerToken(output.type));
  const weights = new Segment();
  const deviceTensors = new Map(
    tensorsOf(graph, "gpu").map(([name, bytes]): [string, number] => [name, weights.take(bytes)]),
  );
  return {
    limits,
    mostPages,
    mostRuns: MOST_RUNS,
    pageCount,
    caches,
    rotations,
    inputs,
    bytes: {
      weights: sum(tensorsOf(graph, "cpu").map(([, bytes]) => bytes)),
      corrections: sum(plan.windows.map((w) => (w.residual?.bytes ?? 0) + (w.factors?.bytes ?? 0))),
      cache: cache.cpu.bytes,
      tables: tables.bytes,
      arena,
      step: step.bytes,
      mailbox: MAILBOX_EVENTS + EVENT_BYTES * events,
      logits,
      staging: withGpu ? Math.max(2 * LOADING_BYTES, stagingOf(plan)) : 0,
    },
    device: withGpu
      ? totalled({
        weights: weights.bytes,
        cache: cache.gpu.bytes,
        tables: tables.bytes,
        arena,
        step: step.bytes + 4 * events,
        scratch: scratchOf(plan, limits),
        staging: stagingOf(plan),
      })
      : null,
    deviceTensors,
    arrivals: step.bytes,
  };
}

/** Bytes for people: `7.6 GiB`. */
export function memoryText(bytes: number): string {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit === 0 ? value : Number(value.toPrecision(3))} ${units[unit]}`;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}

function isOnGpu({ placement }: Node): boolean {
  return placement.device === "gpu";
}

/** Tensors that nodes on a device read of the backbone, and their bytes. */
function tensorsOf(graph: Graph, device: Device): (readonly [name: string, bytes: number])[] {
  const nodes = graph.nodes.filter(({ placement }) => (placement.device ?? "cpu") === device);
  const { matrices, vectors } = inventory(graph, nodes);
  return [
    ...matrices.map(({ name, format, rows, inputs }) =>
      [`${name}.packed`, format === undefined ? 0 : packedShape(format, rows, inputs).bytes] as const
    ),
    ...[...vectors.values()].map(({ path, length }) => [`${path}.weight`, 4 * length] as const),
  ];
}

/** A weight with its residual added: one byte an element, a scale a row and group. */
function scratchOf(
  { graph, corrections }: MemoryOf,
  { capacity, contextLength }: Required<Limits>,
): number {
  const nodes = graph.nodes.filter(isOnGpu);
  const corrected = corrections.prefill === "stream"
    ? nodes.filter((node) => node.op === "linear" && node.params.residual !== undefined)
    : [];
  const combined = inventory(graph, corrected).matrices.map(({ format, rows, inputs }) => {
    if (format === undefined || format.kind === "bf16") return 0;
    const { groups, rowBlocks, paddedInputs } = packedShape(format, rows, inputs);
    return ROW_BLOCK * rowBlocks * (paddedInputs + 4 * groups);
  });
  const types = values(graph);
  const attention = nodes.map((node) => {
    if (node.op !== "attend") return 0;
    const { headDim } = node.params;
    const heads = elementsPerToken(types.get(node.inputs[0] ?? "")!.type) / headDim;
    const chunks = Math.ceil(contextLength / ATTENTION_CHUNK);
    return chunks < 2 ? 0 : Math.min(ATTENTION_SCRATCH, 4 * chunks * capacity * heads * (headDim + 2));
  });
  return Math.max(0, ...attention, ...combined);
}

/** Two windows, each tensor of theirs in whole cache lines. */
function stagingOf({ graph, windows, corrections }: MemoryOf): number {
  if (corrections.prefill !== "stream") return 0;
  const onGpu = new Set(
    graph.nodes.flatMap((node) => node.op === "linear" && isOnGpu(node) ? [node.params.window] : []),
  );
  const stored = windows.filter(({ window }) => onGpu.has(window))
    .map(({ residual, factors }) => (residual?.bytes ?? 0) + (factors?.bytes ?? 0))
    .map((bytes) => bytes === 0 ? 0 : wholeLines(bytes) + MOST_TENSORS * CACHE_LINE);
  return 2 * Math.max(0, ...stored);
}

function totalled(parts: Omit<DeviceBytes, "total">): DeviceBytes {
  const aligned = Object.fromEntries(
    Object.entries(parts).map(([name, bytes]) => [name, wholeLines(bytes)]),
  ) as typeof parts;
  return { ...aligned, total: sum(Object.values(aligned)) };
}

function wholeLines(bytes: number): number {
  return Math.ceil(bytes / CACHE_LINE) * CACHE_LINE;
}

/** Bytes of a segment as they are handed out, in whole cache lines. */
class Segment {
  bytes = 0;

  take(bytes: number): number {
    const offset = this.bytes;
    this.bytes += wholeLines(bytes);
    return offset;
  }
}
