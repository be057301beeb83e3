/**
 * What executors with a paged cache have in common: sequences, the checks of a step, its groups of runs, and its logits. A
 * device computes one group (runs of one kind) at a time.
 */
import { HcinferError } from "../../compiler/errors.ts";
import { type Memory, PAGE_POSITIONS } from "../../compiler/memory.ts";
import type { ModelInfo } from "../../compiler/plan.ts";
import type { StepCounts, StepStatus } from "../../ffi/engine.ts";
import {
  checkStep,
  type Executor,
  logitRows,
  type Sequence,
  type StepKind,
  type StepRequest,
} from "../executor.ts";
import { PagedSequence, PagePool } from "./pages.ts";
import type { PagedRun, StepInputs } from "./step_inputs.ts";

/** What computes: steps on inputs that were written, logits where they lie afterwards. */
export interface StepDevice extends Disposable {
  readonly inputs: StepInputs;
  /** f32 [rows of the last group, vocabulary], and whatever lies behind. */
  readonly logits: Float32Array;
  step(counts: StepCounts, runs: readonly PagedRun[]): StepStatus;
  stepAsync(counts: StepCounts, runs: readonly PagedRun[]): Promise<StepStatus>;
  /** Ends a step that runs asynchronously within milliseconds; `rearm` makes steps possible again. */
  abort(): void;
  rearm(): void;
  /** Copies all layers of a page of the cache, after the steps before and before those after. */
  copyPage(from: number, to: number): void;
}

export abstract class PagedExecutor implements Executor {
  abstract readonly name: string;
  readonly model: ModelInfo;
  readonly memory: Memory;
  readonly capacity: number;
  readonly contextLength: number;
  readonly #pool: PagePool;
  readonly #device: StepDevice;
  #isRunning = false;
  #isClosed = false;

  constructor(model: ModelInfo, memory: Memory, device: StepDevice) {
    this.model = model;
    this.memory = memory;
    this.capacity = memory.limits.capacity;
    this.contextLength = memory.limits.contextLength;
    this.#device = device;
    this.#pool = new PagePool(memory.pageCount, (from, to) => device.copyPage(from, to));
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
      this.#collect(step, runs, this.#device.step(this.#device.inputs.write(runs), runs));
    }
    return this.#end(step);
  }

  async stepAsync(request: StepRequest, signal?: AbortSignal): Promise<readonly Float32Array[]> {
    signal?.throwIfAborted();
    const step = this.#begin(request);
    const abort = () => this.#device.abort();
    signal?.addEventListener("abort", abort);
    this.#isRunning = true;
    try {
      for (const runs of step.groups) {
        const status = await this.#device.stepAsync(this.#device.inputs.write(runs), runs);
        if (this.#isClosed) throw new HcinferError("input", "the executor was closed while a step ran");
        if (status.status === "aborted") throw signal?.reason;
        this.#collect(step, runs, status);
      }
      return this.#end(step);
    } finally {
      this.#isRunning = false;
      signal?.removeEventListener("abort", abort);
      if (!this.#isClosed) this.#device.rearm();
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
  #collect({ groups, logits }: Step, runs: readonly PagedRun[], status: StepStatus): void {
    if (status.status === "overflow") throw overflow(status, runs);
    const { vocabularySize } = this.model;
    const computed = this.#device.logits;
    let row = 0;
    for (const run of runs) {
      const rows = logitRows(run);
      const own = computed.subarray(row * vocabularySize, (row + rows) * vocabularySize);
      logits.set(run.sequence, runs === groups.at(-1) ? own : own.slice());
      row += rows;
    }
  }

  /** Only a step that was computed to its end makes its sequences longer. */
  #end({ runs, logits }: Step): readonly Float32Array[] {
    for (const { sequence, end } of runs) sequence.advance(end);
    return runs.map(({ sequence }) => logits.get(sequence)!);
  }

  /** Gives all memory back, that of logits too, and ends a step that runs: its promise is rejected. */
  [Symbol.dispose](): void {
    this.#isClosed = true;
    this.#device[Symbol.dispose]();
  }
}

/** A step on its way: runs of one kind are computed together, and logits are collected group by group. */
interface Step {
  readonly runs: readonly PagedRun[];
  readonly groups: readonly (readonly PagedRun[])[];
  readonly logits: Map<Sequence, Float32Array>;
}

const KINDS: readonly StepKind[] = ["decode", "prefill"];

function overflow(
  { layer, token, what }: Extract<StepStatus, { readonly status: "overflow" }>,
  runs: readonly PagedRun[],
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
