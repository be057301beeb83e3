/**
 * The cpu executor: a plan's lanes as native programs, its weights mapped from the bundle, a step one call.
 */
import { cpus } from "node:os";
import { HcinferError } from "../../../compiler/errors.ts";
import { limitsOf, type Memory, memoryOf, PAGE_POSITIONS } from "../../../compiler/memory.ts";
import { correctionMode, type ModelInfo, type Plan } from "../../../compiler/plan.ts";
import { Engine, instructionSet, type StepCounts, type StepStatus } from "../../../ffi/engine.ts";
import { ATTENTION_TILE } from "../../../ffi/instructions.ts";
import { allocate, type Mapping, type NativeBuffer } from "../../../ffi/mapping.ts";
import {
  checkStep,
  type ExecutableBundle,
  type Executor,
  type ExecutorOptions,
  logitRows,
  type Run,
  type Sequence,
  type StepKind,
  type StepRequest,
} from "../../executor.ts";
import { Encoder } from "./encode.ts";
import { type Observe, Observers } from "./observe.ts";
import { PagedSequence, PagePool } from "./pages.ts";
import { lanesOf, type ProgramMode } from "./program.ts";

/** The native loss of one prediction, for `evaluate`. */
export { tokenLoss } from "../../../ffi/engine.ts";

/** What this executor reads of a bundle: tensors are views of the mapped file. */
export interface MappedBundle extends ExecutableBundle {
  readonly mapping: Mapping;
}

export interface CpuOptions extends ExecutorOptions {
  /** Adds up what calibration needs of the inputs of every window. Lanes do not run side by side then. */
  readonly observe?: Observe;
}

/**
 * @throws {HcinferError} "usage" for impossible threads or a context the model was not made for, "bundle" for a plan that
 *   does not fit its weights, "environment" when memory is short or HCINFER_ISA names an instruction set that this machine
 *   lacks
 */
export function createCpuExecutor(bundle: MappedBundle, options: CpuOptions): CpuExecutor {
  return new CpuExecutor(bundle, options);
}

export class CpuExecutor implements Executor {
  readonly name: string;
  readonly model: ModelInfo;
  readonly capacity: number;
  readonly contextLength: number;
  /** How corrections run: what was asked, or what the plan chose. */
  readonly mode: ProgramMode;
  /** Of each lane. */
  readonly threads: readonly number[];
  /** Operations of the backbone's program, in the order of `trace`. */
  readonly operations: readonly string[];
  readonly memory: Memory;
  readonly #engine: Engine;
  readonly #observers: Observers | undefined;
  readonly #pool: PagePool;
  readonly #inputs: StepInputs;
  readonly #mailbox: Int32Array;
  readonly #logits: Float32Array;
  #isRunning = false;
  #isClosed = false;

  constructor(bundle: MappedBundle, options: CpuOptions) {
    const { plan } = bundle;
    checkThreads(options.threads);
    this.model = plan.model;
    this.mode = correctionMode(plan, options.corrections, options.threads);
    this.memory = memoryOf(plan, limitsOf(plan.model, options));
    const { bytes, limits } = this.memory;
    this.capacity = limits.capacity;
    this.contextLength = limits.contextLength;
    const encoder = new Encoder({
      plan,
      memory: this.memory,
      corrections: this.mode !== "off",
      weight: (tensor) => {
        const { byteOffset } = bundle.tensor(tensor).bytes;
        return { segment: "weights", offset: byteOffset - bundle.mapping.bytes.byteOffset };
      },
    });
    this.#observers = options.observe && new Observers(plan, options.observe);
    const lanes = lanesOf(plan, encoder, { mode: this.mode, threads: options.threads }, this.#observers);
    // Until the engine holds the memory, a failure gives it back.
    using owned = new DisposableStack();
    const take = (length: number) => owned.use(allocate(length));
    const cache = take(bytes.cache), tables = take(bytes.tables), step = take(bytes.step);
    const mailbox = take(bytes.mailbox), logits = take(bytes.logits);
    const observations = take(this.#observers?.bytes ?? 0);
    this.#observers?.attach(observations);
    fillRotations(tables, plan, this.memory);
    this.#engine = new Engine({
      lanes,
      memory: {
        weights: bundle.mapping,
        arena: take(bytes.arena),
        cache,
        tables,
        step,
        mailbox,
        logits,
        observations,
      },
      capacity: this.capacity,
    });
    owned.move();
    this.threads = lanes.map((lane) => lane.threads);
    this.operations = lanes[0]!.program.map((instruction) => instruction.op);
    this.name = `cpu (${instructionSet()}, ${options.threads} threads)`;
    this.#pool = new PagePool(this.memory.pageCount, (from, to) => copyPage(cache, this.memory, from, to));
    this.#inputs = new StepInputs(step, this.memory);
    this.#mailbox = new Int32Array(mailbox.bytes.buffer, mailbox.bytes.byteOffset, 1);
    this.#logits = new Float32Array(logits.bytes.buffer, logits.bytes.byteOffset, bytes.logits / 4);
  }

  sequence(): PagedSequence {
    return new PagedSequence(this.#pool);
  }

  /** Positions that the cache has room for, beside those that sequences hold. */
  get freePositions(): number {
    return this.#pool.free * PAGE_POSITIONS;
  }

  step(request: StepRequest): readonly Float32Array[] {
    const step = this.#begin(request);
    for (const runs of step.groups) {
      this.#collect(step, runs, this.#engine.step(this.#inputs.write(runs)));
    }
    return this.#end(step);
  }

  async stepAsync(request: StepRequest, signal?: AbortSignal): Promise<readonly Float32Array[]> {
    signal?.throwIfAborted();
    const step = this.#begin(request);
    const abort = () => Atomics.store(this.#mailbox, 0, 1);
    signal?.addEventListener("abort", abort);
    this.#isRunning = true;
    try {
      for (const runs of step.groups) {
        const status = await this.#engine.stepAsync(this.#inputs.write(runs));
        if (this.#isClosed) throw new HcinferError("input", "the executor was closed while a step ran");
        if (status.status === "aborted") throw signal?.reason;
        this.#collect(step, runs, status);
      }
      return this.#end(step);
    } finally {
      this.#isRunning = false;
      signal?.removeEventListener("abort", abort);
      if (!this.#isClosed) Atomics.store(this.#mailbox, 0, 0);
    }
  }

  /** Checks a step and gives its sequences their pages. Whatever is refused is refused before anything changes. */
  #begin(request: StepRequest): Step {
    if (this.#isRunning) throw new HcinferError("input", "a step is running: wait until it has ended");
    checkStep(this, request);
    const runs = request.runs.map((run) => ({
      ...run,
      sequence: this.#own(run.sequence),
      end: run.position + run.tokens.length,
    }));
    const needed = this.#pool.needed(runs);
    if (needed > this.#pool.free) {
      const { cachePositions } = this.memory.limits;
      throw new HcinferError(
        "input",
        `the cache holds ${cachePositions} positions of all sequences, and this step needs ` +
          `${(needed - this.#pool.free) * PAGE_POSITIONS} more: close a sequence, or ask for a larger cache`,
      );
    }
    for (const { sequence, position, end } of runs) sequence.prepare(position, end);
    const groups = KINDS.map((as) => runs.filter((run) => run.as === as)).filter((group) => group.length > 0);
    return { runs, groups, logits: new Map() };
  }

  #own(sequence: Sequence): PagedSequence {
    if (sequence instanceof PagedSequence && sequence.belongsTo(this.#pool)) return sequence;
    throw new HcinferError("input", "a run names a sequence that is closed or of another executor");
  }

  /** The logits of runs that were computed together; copies, where the next group will overwrite them. */
  #collect({ groups, logits }: Step, runs: readonly OwnRun[], status: StepStatus): void {
    if (status.status === "overflow") throw overflow(status, runs);
    const { vocabularySize } = this.model;
    let row = 0;
    for (const run of runs) {
      const rows = logitRows(run);
      const own = this.#logits.subarray(row * vocabularySize, (row + rows) * vocabularySize);
      logits.set(run.sequence, runs === groups.at(-1) ? own : own.slice());
      row += rows;
    }
  }

  /** Only a step that was computed to its end makes its sequences longer. */
  #end({ runs, logits }: Step): readonly Float32Array[] {
    for (const { sequence, end } of runs) sequence.advance(end);
    return runs.map(({ sequence }) => logits.get(sequence)!);
  }

  /** What observers have added up by window, over every token since the executor was made. Views of its memory. */
  get observations(): ReadonlyMap<string, Float64Array> {
    return this.#observers?.sums() ?? new Map();
  }

  /** Nanoseconds of the last step in each of `operations`; the first call switches tracing on. */
  trace(): Float64Array {
    return this.#engine.trace();
  }

  /** Gives all memory back, that of logits too. A step that runs must have ended. */
  /** Ends a step that runs: its promise is rejected. */
  [Symbol.dispose](): void {
    this.#isClosed = true;
    this.#engine[Symbol.dispose]();
  }
}

type OwnRun = Run & {
  readonly sequence: PagedSequence;
  /** Position after its last token. */
  readonly end: number;
};

/** A step on its way: runs of one kind are computed together, and logits are collected group by group. */
interface Step {
  readonly runs: readonly OwnRun[];
  readonly groups: readonly (readonly OwnRun[])[];
  readonly logits: Map<Sequence, Float32Array>;
}

const KINDS: readonly StepKind[] = ["decode", "prefill"];

function checkThreads(threads: number): void {
  const most = 4 * cpus().length;
  if (Number.isInteger(threads) && threads >= 1 && threads <= most) return;
  throw new HcinferError("usage", `--threads ${threads}: expected 1 to ${most} on this machine`);
}

/** What a step reads, in the memory that the engine reads it from. */
class StepInputs {
  readonly #tokens: Int32Array;
  readonly #positions: Int32Array;
  readonly #sequences: Int32Array;
  readonly #rows: Int32Array;
  readonly #tiles: Int32Array;
  readonly #pages: Int32Array;
  readonly #mostPages: number;

  constructor(buffer: NativeBuffer, { inputs, limits, mostPages, mostRuns }: Memory) {
    const array = (offset: number, length: number) =>
      new Int32Array(buffer.bytes.buffer, buffer.bytes.byteOffset + offset, length);
    this.#tokens = array(inputs.tokens, limits.capacity);
    this.#positions = array(inputs.positions, limits.capacity);
    this.#sequences = array(inputs.sequences, limits.capacity);
    this.#rows = array(inputs.rows, limits.capacity);
    this.#tiles = array(inputs.tiles, 2 * limits.capacity);
    this.#pages = array(inputs.pages, mostRuns * mostPages);
    this.#mostPages = mostPages;
  }

  write(runs: readonly OwnRun[]): StepCounts {
    let token = 0, row = 0, tile = 0;
    runs.forEach((run, n) => {
      const { sequence, position, tokens } = run;
      this.#tokens.set(tokens, token);
      this.#pages.set(sequence.pages, n * this.#mostPages);
      for (let t = 0; t < tokens.length; t += ATTENTION_TILE) {
        this.#tiles[2 * tile] = token + t;
        this.#tiles[2 * tile++ + 1] = Math.min(ATTENTION_TILE, tokens.length - t);
      }
      for (let t = 0; t < tokens.length; t++, token++) {
        this.#positions[token] = position + t;
        this.#sequences[token] = n;
        if (t >= tokens.length - logitRows(run)) this.#rows[row++] = token;
      }
    });
    return { tokens: token, rows: row, tiles: tile, mode: runs[0]!.as };
  }
}

function overflow(
  { layer, token, what }: Extract<StepStatus, { readonly status: "overflow" }>,
  runs: readonly OwnRun[],
): HcinferError {
  let at = token;
  const run = runs.find((r) => (at -= r.tokens.length) < 0) ?? runs[0]!;
  const position = run.position + at + run.tokens.length;
  return new HcinferError(
    "bundle",
    `a ${what} of layer ${layer} at position ${position} is beyond what the cache holds (f16, up to 65504), or no ` +
      "number: this model computes activations that are too large, or its weights are damaged",
  );
}

/** cos and sin of position * frequency, times the table's scale: f32 [context, headDim / 2] each. */
function fillRotations(tables: NativeBuffer, { graph }: Plan, memory: Memory): void {
  const { contextLength } = memory.limits;
  for (const { name, frequencies, scale } of graph.ropes) {
    const { cosines, sines } = memory.rotations.get(name)!;
    const half = frequencies.length;
    const array = (offset: number) =>
      new Float32Array(tables.bytes.buffer, tables.bytes.byteOffset + offset, contextLength * half);
    const [cosine, sine] = [array(cosines), array(sines)];
    frequencies.forEach((frequency, i) => {
      for (let position = 0; position < contextLength; position++) {
        cosine[position * half + i] = Math.cos(position * frequency) * scale;
        sine[position * half + i] = Math.sin(position * frequency) * scale;
      }
    });
  }
}

function copyPage(cache: NativeBuffer, { caches }: Memory, from: number, to: number): void {
  for (const { k, v, pageBytes } of caches.values()) {
    for (const base of [k, v]) {
      cache.view(base + to * pageBytes, pageBytes).set(cache.view(base + from * pageBytes, pageBytes));
    }
  }
}
