/**
 * The cpu executor: a plan lowered to one native program, its weights mapped from the bundle, a step one call.
 */
import { cpus } from "node:os";
import { HcinferError } from "../../compiler/errors.ts";
import type { ModelInfo } from "../../compiler/plan.ts";
import { Engine, instructionSet } from "../../ffi/engine.ts";
import { allocate, type Mapping, type NativeBuffer } from "../../ffi/mapping.ts";
import {
  checkStep,
  type ExecutableBundle,
  type Executor,
  type ExecutorOptions,
  logitRows,
  type StepRequest,
} from "../executor.ts";
import { lower, type Lowered, type LoweredMode } from "./cpu_lower.ts";
import { layOut, resolve } from "./cpu_memory.ts";

/** The native loss of one prediction, for `evaluate`. */
export { tokenLoss } from "../../ffi/engine.ts";

/** What this executor reads of a bundle: tensors are views of the mapped file. */
export interface MappedBundle extends ExecutableBundle {
  readonly mapping: Mapping;
}

/** Tokens a step: enough that unpacking a weight costs little beside its products, few enough for the caches. */
const DEFAULT_CAPACITY = 512;
/** The cache of a longer context would be mapped, not touched; its rotation tables would have to be computed. */
const DEFAULT_CONTEXT = 32_768;

/**
 * @throws {HcinferError} "usage" for impossible threads, "bundle" for a plan that does not fit its weights,
 *   "environment" when memory is short or HCINFER_ISA names an instruction set that this machine lacks
 */
export function createCpuExecutor(bundle: MappedBundle, options: ExecutorOptions): CpuExecutor {
  return new CpuExecutor(bundle, options);
}

export class CpuExecutor implements Executor {
  readonly name: string;
  readonly model: ModelInfo;
  readonly capacity: number;
  readonly contextLength: number;
  /** How corrections run: what was asked, or what the plan chose. */
  readonly mode: LoweredMode;
  readonly threads: { readonly backbone: number; readonly compensation: number };
  /** Operations of the backbone's program, in the order of `trace`. */
  readonly operations: readonly string[];
  readonly #engine: Engine;
  readonly #logits: Float32Array;
  #cached = 0;

  constructor(bundle: MappedBundle, options: ExecutorOptions) {
    const { plan } = bundle;
    this.model = plan.model;
    this.contextLength = options.contextLength ?? Math.min(plan.model.contextLength, DEFAULT_CONTEXT);
    this.capacity = Math.min(options.capacity ?? DEFAULT_CAPACITY, this.contextLength);
    const wanted = options.corrections === "auto" ? plan.corrections.mode : options.corrections;
    const corrected = plan.graph.nodes.some((node) => node.op === "merge");
    this.mode = corrected && wanted !== "off" ? laneMode(wanted, options.threads) : "off";
    this.threads = shareThreads(options.threads, this.mode);

    const lowered = lower(plan, {
      mode: this.mode,
      contextLength: this.contextLength,
      weight: (tensor) => {
        const { byteOffset } = bundle.tensor(tensor).bytes;
        return { segment: "weights", offset: byteOffset - bundle.mapping.bytes.byteOffset };
      },
    });
    const layout = layOut(lowered.backbone, lowered.flights, this.capacity);
    const arena = allocate(layout.bytes);
    const tables = allocate(Math.max(1, lowered.tableBytes));
    fillRopes(tables, lowered, this.contextLength);
    this.#engine = new Engine({
      backbone: resolve(lowered.backbone, layout),
      compensation: resolve(lowered.compensation, layout),
      memory: { weights: bundle.mapping, arena, cache: allocate(Math.max(1, lowered.cacheBytes)), tables },
      events: lowered.events,
      backboneThreads: this.threads.backbone,
      compensationThreads: this.threads.compensation,
    });
    this.operations = lowered.backbone.map((instruction) => instruction.op);
    this.name = `cpu (${instructionSet()}, ${options.threads} threads)`;
    const at = layout.offsets.get(lowered.logits.id)!;
    const elements = this.capacity * plan.model.vocabularySize;
    this.#logits = new Float32Array(arena.bytes.buffer, arena.bytes.byteOffset + at, elements);
  }

  step(request: StepRequest): Float32Array {
    checkStep(this, request, this.#cached);
    const { tokens, position, as, logits } = request;
    // A copy where native code cannot read the caller's array in place.
    this.#engine.step(Int32Array.from(tokens), position, as, logits);
    this.#cached = position + tokens.length;
    return this.#logits.subarray(0, logitRows(request) * this.model.vocabularySize);
  }

  /** Nanoseconds of the last step in each of `operations`; the first call switches tracing on. */
  trace(): Float64Array {
    return this.#engine.trace();
  }

  [Symbol.dispose](): void {
    this.#engine[Symbol.dispose]();
  }
}

/** Two lanes need two threads; with one they run in line, with the same numbers. */
function laneMode(wanted: "async" | "inline", threads: number): LoweredMode {
  return wanted === "async" && threads < 2 ? "inline" : wanted;
}

/** One thread in four for the compensation lane, which reads about a tenth of what the backbone reads. */
function shareThreads(threads: number, mode: LoweredMode): { backbone: number; compensation: number } {
  const most = 4 * cpus().length;
  if (!Number.isInteger(threads) || threads < 1 || threads > most) {
    throw new HcinferError("usage", `--threads ${threads}: expected 1 to ${most} on this machine`);
  }
  const compensation = mode === "async" ? Math.max(1, Math.round(threads / 4)) : 0;
  return { backbone: threads - compensation, compensation };
}

/** scale * cos and sin of position * frequency, f32 [context, headDim / 2] each. */
function fillRopes(tables: NativeBuffer, lowered: Lowered, contextLength: number): void {
  for (const { frequencies, scale, offset } of lowered.ropes) {
    const half = frequencies.length;
    const start = tables.bytes.byteOffset + offset;
    const cosines = new Float32Array(tables.bytes.buffer, start, contextLength * half);
    const sines = new Float32Array(tables.bytes.buffer, start + cosines.byteLength, contextLength * half);
    for (const [i, frequency] of frequencies.entries()) {
      for (let position = 0; position < contextLength; position++) {
        cosines[position * half + i] = Math.cos(position * frequency) * scale;
        sines[position * half + i] = Math.sin(position * frequency) * scale;
      }
    }
  }
}
