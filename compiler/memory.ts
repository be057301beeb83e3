/**
 * The memory of a running plan, segment by segment: what `inspect` predicts, the null executor reports and the cpu
 * executor allocates are this.
 */
import { HcinferError } from "./errors.ts";
import { values } from "./ir/graph.ts";
import { elementsPerToken } from "./ir/types.ts";
import type { ModelInfo, Plan } from "./plan.ts";

/** Positions of the key-value cache that are allocated, shared and freed together. A multiple of 16. */
export const PAGE_POSITIONS = 64;
/** Most runs of one step: rows of its page table. */
export const MOST_RUNS = 64;
/** Bytes of the mailbox before its events: the abort flag (u32 at 0) and the step's number (u64 at 64). */
export const MAILBOX_EVENTS = 128;
/** An event has a cache line of its own; a lane publishes the step's number there (u64). */
export const EVENT_BYTES = 64;

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

/**
 * The limits of whoever runs or predicts a model: what was asked for, or the defaults. A step is never longer than the
 * context.
 * @throws {HcinferError} "usage": a context the model was not made for, or a limit below 1
 */
export function limitsOf(model: ModelInfo, asked: Partial<Limits> = {}): Required<Limits> {
  const { contextLength = Math.min(model.contextLength, DEFAULT_CONTEXT) } = asked;
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

/** Keys and values of one layer: byte offsets into the cache, each [pages, kvHeads, PAGE_POSITIONS, headDim] f16. */
export interface LayerCache {
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
  readonly bytes: {
    readonly weights: number;
    readonly corrections: number;
    readonly cache: number;
    readonly tables: number;
    readonly arena: number;
    readonly step: number;
    readonly mailbox: number;
    /** f32 [capacity, vocabulary]; only the rows that a step writes are ever touched. */
    readonly logits: number;
  };
}

export function memoryOf(
  plan: Pick<Plan, "graph" | "memory" | "weights" | "vectors" | "windows" | "lanes">,
  limits: Required<Limits>,
): Memory {
  const { capacity, contextLength, cachePositions } = limits;
  const { graph } = plan;
  const types = values(graph);
  const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0);
  const mostPages = Math.ceil(contextLength / PAGE_POSITIONS);
  const pageCount = Math.ceil(cachePositions / PAGE_POSITIONS);
  const cache = new Segment(), tables = new Segment(), step = new Segment();
  const caches = new Map<number, LayerCache>();
  const rotations = new Map(graph.ropes.map(({ name, frequencies }): [string, Rotation] => {
    const bytes = 4 * contextLength * frequencies.length;
    return [name, { cosines: tables.take(bytes), sines: tables.take(bytes) }];
  }));
  for (const node of graph.nodes) {
    if (node.op === "append") {
      const pageBytes = 2 * PAGE_POSITIONS * elementsPerToken(types.get(node.inputs[1] ?? "")!.type);
      const bytes = pageCount * pageBytes;
      caches.set(node.params.layer, { k: cache.take(bytes), v: cache.take(bytes), pageBytes });
    }
  }
  const array = (elements: number) => step.take(4 * elements);
  const inputs = {
    tokens: array(capacity),
    positions: array(capacity),
    sequences: array(capacity),
    rows: array(capacity),
    tiles: array(2 * capacity),
    pages: array(MOST_RUNS * mostPages),
  };
  const events = sum(plan.lanes.map(({ steps }) => steps.filter((s) => "signal" in s).length));
  const logits = types.get(graph.outputs[0] ?? "");
  return {
    limits,
    mostPages,
    mostRuns: MOST_RUNS,
    pageCount,
    caches,
    rotations,
    inputs,
    bytes: {
      weights: sum(plan.weights.map((w) => w.bytes)) + 4 * sum(Object.values(plan.vectors)),
      corrections: sum(plan.windows.map((w) => (w.residual?.bytes ?? 0) + (w.factors?.bytes ?? 0))),
      cache: cache.bytes,
      tables: tables.bytes,
      arena: plan.memory.bytesPerToken * capacity,
      step: step.bytes,
      mailbox: MAILBOX_EVENTS + EVENT_BYTES * events,
      logits: 4 * capacity * (logits === undefined ? 0 : elementsPerToken(logits.type)),
    },
  };
}

/** Bytes of a segment as they are handed out, in whole cache lines. */
class Segment {
  bytes = 0;

  take(bytes: number): number {
    const offset = this.bytes;
    this.bytes += Math.ceil(bytes / 64) * 64;
    return offset;
  }
}
