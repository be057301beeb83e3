/**
 * The GPU and the CPU as one device of a paged executor. A step: its inputs go up, the kernels are launched (a decode step of
 * few tokens as one recorded graph), the engine runs the CPU's lane meanwhile, and both are waited for.
 */
import { HcinferError } from "../../../compiler/errors.ts";
import { DriverError } from "../../../ffi/cuda/driver.ts";
import type { EventWait } from "../../../ffi/cuda/event_wait.ts";
import { Kernels } from "../../../ffi/cuda/kernels.ts";
import { type Graph, Stream } from "../../../ffi/cuda/stream.ts";
import { checkProgram, Engine, type StepCounts, type StepStatus } from "../../../ffi/engine.ts";
import type { Instruction } from "../../../ffi/instructions.ts";
import type { StepDevice } from "../paged.ts";
import { type PagedRun, StepInputs } from "../step_inputs.ts";
import type { StepKind } from "../../executor.ts";
import { prepare, type Prepared, scratchBytes, type Shape } from "./launcher.ts";
import { CudaMemory, type MemoryParts } from "./memory.ts";
import type { CudaProgram, KernelStep } from "./program.ts";
import { Recent } from "./recent.ts";

/** Decode steps of at most so many tokens are recorded: their kernels depend on counts, which repeat. */
const RECORDED_TOKENS = 8;
/** Recordings, and lists of launches, that are kept. A recording of a large model is a few megabytes. */
const MOST_RECORDED = 32, MOST_PREPARED = 8;
/** Least rounding of a step's context, so that one recording serves many steps. */
const LEAST_CONTEXT = 256;

export interface CudaParts extends MemoryParts {
  readonly programs: Readonly<Record<StepKind, CudaProgram>>;
  readonly threads: number;
  /** Milliseconds that one side waits for the other before it calls it lost. */
  readonly patience: number;
}

export class CudaDevice implements StepDevice {
  readonly inputs: StepInputs;
  readonly #parts: CudaParts;
  readonly #owned: DisposableStack;
  readonly #kernels: Kernels;
  readonly #stream: Stream;
  readonly #copies: Stream;
  readonly #memory: CudaMemory;
  readonly #engines: Readonly<Record<StepKind, Engine | undefined>>;
  /** By the event that the GPU waits for before anything else. */
  readonly #firstWaits: ReadonlyMap<number, EventWait>;
  readonly #recorded: Recent<Graph>;
  readonly #prepared = new Recent<Prepared[]>(MOST_PREPARED);
  #isOrdered = false;
  #isClosed = false;
  #isLost = false;
  #failure: unknown;

  constructor(parts: CudaParts) {
    const { context, memory, programs, threads, patience } = parts;
    this.#parts = parts;
    checkSizes(parts);
    // Until it is whole, a failure gives everything back.
    using owned = new DisposableStack();
    this.#kernels = owned.use(new Kernels(context));
    this.#stream = owned.use(new Stream(context));
    this.#copies = owned.use(new Stream(context));
    this.#recorded = owned.use(new Recent(MOST_RECORDED));
    this.#memory = owned.use(new CudaMemory(parts, this.#copies));
    const { capacity } = memory.limits;
    for (const as of KINDS) {
      checkProgram(tableInstructions(programs[as].kernels), this.#memory.extents, capacity);
    }
    const engine = (program: readonly Instruction[]) =>
      program.length === 0
        ? undefined
        : new Engine({ lanes: [{ program, threads }], memory: this.#memory.engine, capacity, patience });
    const decode = engine(programs.decode.host), prefill = engine(programs.prefill.host);
    // The memory is given back with the rest, after the engines.
    for (const own of [decode, prefill]) owned.defer(() => own?.close());
    this.#engines = { decode, prefill };
    const first = KINDS.map((as) => programs[as].kernels[0]?.wait).filter((event) => event !== undefined);
    this.#firstWaits = new Map(first.map((event) => [event, this.#memory.waitFor(event)]));
    this.inputs = new StepInputs(this.#memory.inputs, memory);
    this.#owned = owned.move();
  }

  get logits(): Float32Array {
    return this.#memory.logits.values;
  }

  step(counts: StepCounts, runs: readonly PagedRun[]): StepStatus {
    return this.#guarded(counts, () => {
      const order = this.#ready(counts, runs), engine = this.#engines[counts.mode];
      let status: StepStatus;
      if (engine === undefined || isRecorded(counts)) {
        order();
        status = this.#heard(engine?.step(counts) ?? DONE);
      } else {
        const join = engine.begin(counts);
        try {
          order();
        } catch (error) {
          this.abort();
          join();
          throw error;
        }
        status = this.#heard(join());
      }
      this.#stream.synchronize();
      return this.#outcome(status);
    });
  }

  async stepAsync(counts: StepCounts, runs: readonly PagedRun[]): Promise<StepStatus> {
    const order = this.#guarded(counts, () => this.#ready(counts, runs));
    const engine = this.#engines[counts.mode];
    const ended = () => this.#ended(engine, counts).catch((error: unknown) => error);
    const early = engine === undefined || isRecorded(counts) ? undefined : ended();
    try {
      this.#guarded(counts, order);
    } catch (error) {
      Atomics.store(this.#memory.abortFlag, 0, 1);
      await early;
      throw error;
    }
    let status = await (early ?? ended());
    // What was ordered since the lane had ended was not waited for.
    if (early !== undefined && isStatus(status) && !this.#isClosed) {
      status = await this.#stream.finished().then(() => status, (error: unknown) => error);
    }
    if (this.#isClosed) return { status: "aborted" };
    return this.#guarded(counts, () => {
      if (!isStatus(status)) throw status;
      return this.#outcome(status);
    });
  }

  /** Waits for both sides of a step on a thread that is not JavaScript's. */
  async #ended(engine: Engine | undefined, counts: StepCounts): Promise<StepStatus> {
    if (engine === undefined) {
      await this.#stream.finished();
      return DONE;
    }
    const { status, driver } = await engine.stepBeside(counts, {
      ...this.#stream.native,
      abort: this.#memory.abortFlag,
    });
    if (driver !== 0) throw this.#parts.context.driver.error("cuStreamSynchronize", driver);
    return status;
  }

  /** An error of the driver ends the executor: what was in the GPU's memory may be gone. */
  #guarded<T>(counts: StepCounts, work: () => T): T {
    if (this.#failure !== undefined) throw this.#failure;
    try {
      return work();
    } catch (error) {
      if (!(error instanceof DriverError)) throw error;
      this.#isLost = error.lost;
      this.#failure = new HcinferError(
        "environment",
        `a ${counts.mode} step of ${counts.tokens} tokens failed on the GPU: ${error.message}`,
        { cause: error },
      );
      throw this.#failure;
    }
  }

  /** Makes a step ready, which may load kernels. What is returned orders it on the GPU, and returns before it has run. */
  #ready(counts: StepCounts, runs: readonly PagedRun[]): () => void {
    const most = Math.max(...runs.map((run) => run.end));
    // Powers of two, so that few recordings serve all positions.
    const context = Math.max(LEAST_CONTEXT, 2 ** Math.ceil(Math.log2(most)));
    const shape: Shape = {
      tokens: counts.tokens,
      rows: counts.rows,
      tiles: counts.tiles,
      context: Math.min(context, this.#parts.memory.limits.contextLength),
    };
    const { number, report, logits, around } = this.#memory;
    const next = number[0]! + 1n;
    // The engine counts the steps that it runs.
    if (this.#engines[counts.mode] === undefined) number[0] = next;
    report.write(next, this.#parts.patience);
    if (logits.reserve(counts.rows)) {
      this.#recorded.clear();
      this.#prepared.clear();
    }
    const key = [counts.mode, ...Object.values(shape)].join();
    const prepared = () =>
      prepare(this.#parts.programs[counts.mode].kernels, shape, this.#kernels, {
        ...around,
        checks: counts.mode === "prefill",
      });
    let launch: () => void;
    if (isRecorded(counts)) {
      const record = () => {
        // Kernels are loaded as they are prepared, which must not happen while a stream records.
        const launches = prepared();
        return this.#stream.capture(() => this.#launch(launches, runs.length));
      };
      const graph = this.#recorded.get(`${key},${runs.length}`, record);
      launch = () => graph.launch(this.#stream);
    } else {
      const launches = this.#prepared.get(key, prepared);
      launch = () => this.#launch(launches, runs.length);
    }
    return () => {
      this.#isOrdered = true;
      launch();
      if (this.#engines[counts.mode] === undefined) return;
      // The CPU's lane may wait for kernels before anybody waits for the streams.
      this.#copies.flush();
      this.#stream.flush();
    };
  }

  #launch(prepared: readonly Prepared[], runs: number): void {
    const { staging } = this.#parts;
    this.#memory.orderUp(this.#stream, runs);
    // Where layers are spilled the CPU begins, and may take long.
    this.#firstWaits.get(prepared[0]?.step.wait ?? -1)?.order(this.#stream);
    prepared.forEach(({ step: { streams }, launches }, i) => {
      if (streams !== undefined && prepared[i - 1]?.step.streams !== streams) {
        staging.bring(streams, this.#copies, this.#stream);
      }
      for (const launch of launches) launch.launch(this.#stream);
      if (streams !== undefined && prepared[i + 1]?.step.streams !== streams) {
        staging.used(streams, this.#stream);
      }
    });
    this.#memory.orderReport(this.#stream);
  }

  /** Where the engine ended early, the kernels that wait for it are to end, too. */
  #heard(status: StepStatus): StepStatus {
    if (status.status !== "done" && status.status !== "overflow" && !this.#isClosed) {
      Atomics.store(this.#memory.abortFlag, 0, 1);
    }
    return status;
  }

  /** What became of a step that both sides have ended. */
  #outcome(status: StepStatus): StepStatus {
    this.#isOrdered = false;
    const { stopped, lost, overflow } = this.#memory.report;
    if (stopped) this.#memory.resetArrivals();
    if (lost || status.status === "lost") {
      this.rearm();
      const [who, whom] = lost ? ["the GPU", "the CPU's lane"] : ["the CPU's lane", "the GPU"];
      throw new HcinferError(
        "environment",
        `${who} waited ${this.#parts.patience} ms in vain for ${whom}: the machine is overloaded or a lane stopped. ` +
          "The step was given up; the next can be run",
      );
    }
    if (stopped || status.status === "aborted") return { status: "aborted" };
    if (status.status !== "overflow") return overflow ?? status;
    return overflow === undefined || status.layer < overflow.layer ? status : overflow;
  }

  abort(): void {
    Atomics.store(this.#memory.abortFlag, 0, 1);
    if (this.#isOrdered) this.#memory.stop();
  }

  rearm(): void {
    Atomics.store(this.#memory.abortFlag, 0, 0);
  }

  copyPage(from: number, to: number): void {
    this.#memory.copyPage(from, to, this.#stream);
  }

  /** Ends a step that runs, and gives all memory back. */
  [Symbol.dispose](): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    if (this.#isOrdered) {
      this.abort();
      // Its kernels use what is given back next.
      this.#parts.context.release(() => this.#stream.synchronize());
    }
    this.#owned[Symbol.dispose]();
  }

  /** Whether the GPU's context is lost: nothing can be computed in it any more. */
  get isLost(): boolean {
    return this.#isLost;
  }

  /** Bytes of the GPU's memory that it holds. */
  get deviceBytes(): number {
    return this.#memory.deviceBytes;
  }
}

const KINDS: readonly StepKind[] = ["decode", "prefill"];
const DONE: StepStatus = { status: "done" };

/**
 * Whether a step is launched as one. Others are ordered while the CPU's lane runs: a driver's queue holds some 1000 launches,
 * beyond which ordering waits for kernels, and these may wait for the CPU's lane.
 */
function isRecorded({ mode, tokens }: StepCounts): boolean {
  return mode === "decode" && tokens <= RECORDED_TOKENS;
}

/** That what the kernels ask for is no more than was planned. */
function checkSizes({ memory: { limits, device }, programs, staging, context }: CudaParts): void {
  const few = Array.from({ length: Math.min(RECORDED_TOKENS, limits.capacity) }, (_, i) => i + 1);
  const scratch = KINDS.flatMap((as) =>
    [...few, limits.capacity].map((tokens) => {
      const shape = { tokens, rows: tokens, tiles: tokens, context: limits.contextLength };
      return scratchBytes(programs[as].kernels, shape, context.device);
    })
  );
  const needed = Math.max(...scratch), planned = device!;
  if (needed <= planned.scratch && staging.bytes <= planned.staging) return;
  throw new Error(
    `planned ${planned.scratch} bytes of scratch and ${planned.staging} of staging, needed ${needed} and ` +
      `${staging.bytes}`,
  );
}

function isStatus(outcome: unknown): outcome is StepStatus {
  return typeof outcome === "object" && outcome !== null && "status" in outcome &&
    !(outcome instanceof Error);
}

/** The instructions of the common table, as the native check of operands reads them. */
function tableInstructions(steps: readonly KernelStep[]): Instruction[] {
  return steps.flatMap(({ instruction, over }) =>
    instruction.op === "mirror"
      ? []
      : [{ ...instruction, over, when: "always", barrier: true, awaits: 0 } as Instruction]
  );
}
