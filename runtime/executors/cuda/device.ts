/**
 * The GPU and the CPU as one device of a paged executor. A step: its inputs go up, the kernels are launched (a decode step of
 * few tokens as one recorded graph), the engine runs the CPU's lane meanwhile, and both are waited for.
 */
import { HcinferError } from "../../../compiler/errors.ts";
import type { Memory } from "../../../compiler/memory.ts";
import type { Context } from "../../../ffi/cuda/context.ts";
import { DriverError } from "../../../ffi/cuda/driver.ts";
import { Kernels } from "../../../ffi/cuda/kernels.ts";
import { DeviceMemory, PinnedMemory } from "../../../ffi/cuda/memory.ts";
import { type Graph, Stream } from "../../../ffi/cuda/stream.ts";
import { checkProgram, Engine, type StepCounts, type StepStatus } from "../../../ffi/engine.ts";
import { allocate, type NativeMemory } from "../../../ffi/mapping.ts";
import type { Instruction, Operand, Segment } from "../../../ffi/instructions.ts";
import type { MappedBundle } from "../cpu/executor.ts";
import type { StepDevice } from "../paged.ts";
import { fillRotations } from "../rotations.ts";
import { type PagedRun, StepInputs } from "../step_inputs.ts";
import type { StepKind } from "../../executor.ts";
import { prepare, type Prepared, scratchBytes, type Shape, type Surroundings } from "./launcher.ts";
import type { CudaProgram, KernelStep } from "./program.ts";
import { Logits } from "./logits.ts";
import { Recent } from "./recent.ts";
import { StepReport, STOPPED_OFFSET } from "./report.ts";
import { type Staging, upload } from "./tensors.ts";

/** Decode steps of at most so many tokens are recorded: their kernels depend on counts, which repeat. */
const RECORDED_TOKENS = 8;
/** Recordings, and lists of launches, that are kept. A recording of a large model is a few megabytes. */
const MOST_RECORDED = 32, MOST_PREPARED = 8;
/** Least rounding of a step's context, so that one recording serves many steps. */
const LEAST_CONTEXT = 256;
/** Byte offset of the step's number in the mailbox. */
const NUMBER = 64;
/** Rows of logits that there is room for at first. */
const FIRST_ROWS = 64;
const STOP = Uint8Array.of(1, 0, 0, 0);

export interface CudaParts {
  readonly context: Context;
  readonly bundle: MappedBundle;
  readonly memory: Memory;
  readonly programs: Readonly<Record<StepKind, CudaProgram>>;
  readonly staging: Staging;
  readonly threads: number;
  /** Milliseconds that one side waits for the other before it calls it lost. */
  readonly patience: number;
  /** Bytes of the GPU's memory that may be taken. */
  readonly limit: number;
}

export class CudaDevice implements StepDevice {
  readonly inputs: StepInputs;
  readonly #parts: CudaParts;
  readonly #owned: DisposableStack;
  readonly #kernels: Kernels;
  readonly #stream: Stream;
  readonly #copies: Stream;
  readonly #around: Surroundings;
  readonly #cache: DeviceMemory | undefined;
  readonly #hostCache: NativeMemory;
  readonly #step: DeviceMemory;
  readonly #inputs: PinnedMemory;
  readonly #report: StepReport;
  /** In the mailbox: the flag that ends a step, and the number of the last. */
  readonly #abortFlag: Int32Array;
  readonly #number: BigUint64Array;
  readonly #logits: Logits;
  readonly #engines: Readonly<Record<StepKind, Engine | undefined>>;
  readonly #recorded: Recent<Graph>;
  readonly #prepared = new Recent<Prepared[]>(MOST_PREPARED);
  #taken = 0;
  #isOrdered = false;
  #isClosed = false;
  #isLost = false;
  #failure: unknown;

  constructor(parts: CudaParts) {
    const { context, bundle, memory, programs, staging } = parts;
    this.#parts = parts;
    // Until it is whole, a failure gives everything back.
    using owned = new DisposableStack();
    this.#kernels = owned.use(new Kernels(context));
    this.#stream = owned.use(new Stream(context));
    this.#copies = owned.use(new Stream(context));
    this.#recorded = owned.use(new Recent(MOST_RECORDED));
    const device = (bytes: number, what: string) => this.#take(owned, bytes, what);
    // Whole cache lines, at least one.
    const pinned = (bytes: number) =>
      owned.use(PinnedMemory.allocate(context, 64 * Math.max(1, Math.ceil(bytes / 64))));

    const sizes = memory.device!;
    const weights = device(sizes.weights, "weights");
    const stagingMemory = device(sizes.staging, "corrections on their way");
    const arena = device(sizes.arena, "activations"), tables = device(sizes.tables, "tables");
    this.#cache = device(sizes.cache, "keys and values");
    this.#step = device(sizes.step, "inputs of a step")!;
    const scratch = device(sizes.scratch, "scratch");
    this.#checkSizes();
    const twin = pinned(memory.bytes.arena);
    twin.view(0, twin.byteLength).fill(0);
    this.#inputs = pinned(memory.bytes.step);
    const mailbox = pinned(memory.bytes.mailbox);
    // The engine's memory stays where it is: where the head is on the CPU, there is room for all rows at once.
    const { capacity } = memory.limits,
      rows = isHeadOnGpu(bundle) ? Math.min(capacity, FIRST_ROWS) : capacity;
    this.#logits = owned.use(new Logits(context, bundle.plan.model.vocabularySize, rows));
    this.#report = owned.use(new StepReport(context, this.#inputs));
    this.#hostCache = owned.use(allocate(memory.bytes.cache));
    const hostTables = owned.use(allocate(memory.bytes.tables));

    const { buffer, byteOffset } = mailbox.view(0, mailbox.byteLength).fill(0);
    this.#abortFlag = new Int32Array(buffer, byteOffset, 1);
    this.#number = new BigUint64Array(buffer, byteOffset + NUMBER, 1);
    this.#step.fill(0);
    fillRotations(hostTables, bundle.plan, memory);
    if (tables) tables.write(hostTables.view(0, hostTables.byteLength));
    if (weights) upload(context, memory, (tensor) => bundle.tensor(tensor).bytes, weights, this.#copies);
    if (stagingMemory && staging.bytes > 0) staging.attach(context, stagingMemory);
    owned.use(staging);

    const bases: { readonly [S in Segment]?: bigint | undefined } = {
      weights: weights?.address,
      arena: arena?.address,
      cache: this.#cache?.address,
      tables: tables?.address,
      step: this.#step.address,
      twin: twin.deviceAddress,
    };
    this.#around = {
      addressOf: ({ segment, offset }: Operand) => {
        if (segment === "staging") return staging.address(offset);
        if (segment === "logits") return this.#logits.memory.deviceAddress + BigInt(offset);
        const base = bases[segment];
        if (base === undefined) throw new HcinferError("bundle", `a kernel has an operand in ${segment}`);
        return base + BigInt(offset);
      },
      twin: twin.deviceAddress - (arena?.address ?? 0n),
      report: this.#step.address,
      mailbox: mailbox.deviceAddress,
      arrivals: this.#step.at(memory.arrivals),
      scratch: scratch?.address ?? 0n,
      checks: false,
    };
    const extents = {
      weights: sizes.weights,
      arena: sizes.arena,
      cache: sizes.cache,
      tables: sizes.tables,
      step: memory.bytes.step,
      logits: memory.bytes.logits,
      twin: memory.bytes.arena,
      staging: staging.extent,
    };
    for (const as of KINDS) {
      checkProgram(tableInstructions(programs[as].kernels), extents, memory.limits.capacity);
    }

    const engineMemory = {
      weights: bundle.mapping,
      arena: twin,
      cache: this.#hostCache,
      tables: hostTables,
      step: this.#inputs,
      mailbox,
      ...(isHeadOnGpu(bundle) ? {} : { logits: this.#logits.memory }),
    };
    const engine = (program: readonly Instruction[]) =>
      program.length === 0 ? undefined : new Engine({
        lanes: [{ program, threads: parts.threads }],
        memory: engineMemory,
        capacity: memory.limits.capacity,
        patience: parts.patience,
      });
    const decode = engine(programs.decode.host), prefill = engine(programs.prefill.host);
    // The memory is given back here, after the engines.
    for (const own of [decode, prefill]) owned.defer(() => own?.close());
    this.#engines = { decode, prefill };
    this.inputs = new StepInputs(this.#inputs, memory);
    this.#stream.synchronize();
    this.#owned = owned.move();
  }

  get logits(): Float32Array {
    return this.#logits.values;
  }

  step(counts: StepCounts, runs: readonly PagedRun[]): StepStatus {
    return this.#guarded(counts, () => {
      this.#prepare(counts, runs)();
      const status = this.#heard(this.#engines[counts.mode]?.step(counts) ?? DONE);
      this.#stream.synchronize();
      return this.#outcome(status);
    });
  }

  async stepAsync(counts: StepCounts, runs: readonly PagedRun[]): Promise<StepStatus> {
    const order = this.#guarded(counts, () => this.#prepare(counts, runs));
    const engine = this.#engines[counts.mode];
    const ended = () => this.#ended(engine, counts).catch((error: unknown) => error);
    // A driver's queue holds some 1000 launches: more wait for kernels, and kernels for the CPU's lane, which must run by then.
    const early = engine === undefined || isRecorded(counts) ? undefined : ended();
    try {
      this.#guarded(counts, order);
    } catch (error) {
      Atomics.store(this.#abortFlag, 0, 1);
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
      abort: this.#abortFlag,
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
  #prepare(counts: StepCounts, runs: readonly PagedRun[]): () => void {
    const most = Math.max(...runs.map((run) => run.end));
    // Powers of two, so that few recordings serve all positions.
    const context = Math.max(LEAST_CONTEXT, 2 ** Math.ceil(Math.log2(most)));
    const shape: Shape = {
      tokens: counts.tokens,
      rows: counts.rows,
      tiles: counts.tiles,
      context: Math.min(context, this.#parts.memory.limits.contextLength),
    };
    const number = this.#number[0]! + 1n;
    // The engine counts the steps that it runs.
    if (this.#engines[counts.mode] === undefined) this.#number[0] = number;
    this.#report.write(number, this.#parts.patience);
    if (this.#logits.reserve(counts.rows)) {
      this.#recorded.clear();
      this.#prepared.clear();
    }
    const key = [counts.mode, ...Object.values(shape)].join();
    const prepared = () =>
      prepare(this.#parts.programs[counts.mode].kernels, shape, this.#kernels, {
        ...this.#around,
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
    const { staging, memory } = this.#parts;
    const { pages } = memory.inputs;
    // The report, then the inputs; page tables come last, and only the first are of this step.
    this.#step.writeAsync(this.#stream, this.#inputs, { length: pages + 4 * memory.mostPages * runs });
    prepared.forEach(({ step: { streams }, launches }, i) => {
      if (streams !== undefined && prepared[i - 1]?.step.streams !== streams) {
        staging.bring(streams, this.#copies, this.#stream);
      }
      for (const launch of launches) launch.launch(this.#stream);
      if (streams !== undefined && prepared[i + 1]?.step.streams !== streams) {
        staging.used(streams, this.#stream);
      }
    });
    this.#report.fetch(this.#step, this.#stream);
  }

  /** Where the engine ended early, the kernels that wait for it are to end, too. */
  #heard(status: StepStatus): StepStatus {
    if (status.status !== "done" && status.status !== "overflow" && !this.#isClosed) {
      Atomics.store(this.#abortFlag, 0, 1);
    }
    return status;
  }

  /** What became of a step that both sides have ended. */
  #outcome(status: StepStatus): StepStatus {
    this.#isOrdered = false;
    const { stopped, lost, overflow } = this.#report;
    // Blocks that left early were not counted.
    if (stopped) this.#step.fill(0, { offset: this.#parts.memory.arrivals });
    if (lost || status.status === "lost") {
      Atomics.store(this.#abortFlag, 0, 0);
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
    Atomics.store(this.#abortFlag, 0, 1);
    // Kernels that wait for nobody look at the report.
    if (this.#isOrdered) this.#step.write(STOP, STOPPED_OFFSET);
  }

  rearm(): void {
    Atomics.store(this.#abortFlag, 0, 0);
  }

  copyPage(from: number, to: number): void {
    for (const { device, k, v, pageBytes } of this.#parts.memory.caches.values()) {
      for (const base of [k, v]) {
        if (device === "gpu") {
          const cache = this.#cache!;
          cache.copyAsync(this.#stream, cache, {
            offset: base + to * pageBytes,
            fromOffset: base + from * pageBytes,
            length: pageBytes,
          });
        } else {
          const page = this.#hostCache.view(base + from * pageBytes, pageBytes);
          this.#hostCache.view(base + to * pageBytes, pageBytes).set(page);
        }
      }
    }
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

  /** Memory of the GPU, within the limit; undefined for none. */
  #take(owned: DisposableStack, bytes: number, what: string): DeviceMemory | undefined {
    if (bytes === 0) return undefined;
    this.#taken += bytes;
    const { limit, context } = this.#parts;
    if (this.#taken > limit) {
      const gib = (n: number) => (n / 2 ** 30).toFixed(2);
      throw new HcinferError(
        "usage",
        `${what} need ${gib(bytes)} GiB of the GPU's memory and ${
          gib(this.#taken - bytes)
        } GiB are taken, of ` +
          `${gib(limit)} GiB that are allowed: allow more, choose fewer bits or a shorter context`,
      );
    }
    return owned.use(DeviceMemory.allocate(context, bytes));
  }

  /** Whether the GPU's context is lost: nothing can be computed in it any more. */
  get isLost(): boolean {
    return this.#isLost;
  }

  /** Bytes of the GPU's memory that it holds. */
  get deviceBytes(): number {
    return this.#taken;
  }

  /** That what the kernels ask for is no more than was planned. */
  #checkSizes(): void {
    const { memory: { limits, device }, programs, staging, context } = this.#parts;
    const few = Array.from({ length: Math.min(RECORDED_TOKENS, limits.capacity) }, (_, i) => i + 1);
    const scratch = KINDS.flatMap((as) =>
      [...few, limits.capacity].map((tokens) => {
        const shape = { tokens, rows: tokens, tiles: tokens, context: limits.contextLength };
        return scratchBytes(programs[as].kernels, shape, context.device);
      })
    );
    const needed = Math.max(...scratch);
    if (needed > device!.scratch || staging.bytes > device!.staging) {
      throw new Error(
        `planned ${device!.scratch} bytes of scratch and ${
          device!.staging
        } of staging, needed ${needed} and ${staging.bytes}`,
      );
    }
  }
}

const KINDS: readonly StepKind[] = ["decode", "prefill"];
const DONE: StepStatus = { status: "done" };

/** Whether a step is launched as one. */
function isRecorded({ mode, tokens }: StepCounts): boolean {
  return mode === "decode" && tokens <= RECORDED_TOKENS;
}

function isHeadOnGpu({ plan: { graph } }: MappedBundle): boolean {
  const head = graph.nodes.find((node) => node.outputs.some(({ name }) => graph.outputs.includes(name)));
  return head?.placement.device === "gpu";
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
