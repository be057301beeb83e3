/**
 * The cpu executor: a plan's lanes as native programs, its weights mapped from the bundle, a step one call.
 */
import { cpus } from "node:os";
import { HcinferError } from "../../../compiler/errors.ts";
import { limitsOf, type Memory, memoryOf } from "../../../compiler/memory.ts";
import { withoutCorrections } from "../../../compiler/passes/steps.ts";
import { correctionMode } from "../../../compiler/plan.ts";
import { Engine, instructionSet, type StepCounts, type StepStatus } from "../../../ffi/engine.ts";
import { allocate, type Mapping, type NativeBuffer } from "../../../ffi/mapping.ts";
import type { ExecutableBundle, ExecutorOptions } from "../../executor.ts";
import { PagedExecutor, type StepDevice } from "../paged.ts";
import { fillRotations } from "../rotations.ts";
import { StepInputs } from "../step_inputs.ts";
import { Encoder } from "../encode.ts";
import { type Observe, Observers } from "./observe.ts";
import { type Lane, lanesOf, type ProgramMode } from "./program.ts";

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
  checkThreads(options.threads);
  const mode = correctionMode(bundle.plan, options.corrections, options.threads);
  const memory = memoryOf(bundle.plan, limitsOf(bundle.plan.model, options));
  const plan = mode === "off"
    ? { ...bundle.plan, graph: withoutCorrections(bundle.plan.graph) }
    : bundle.plan;
  const encoder = new Encoder({
    plan,
    memory,
    residuals: mode !== "off",
    weight: (tensor) => {
      const { byteOffset } = bundle.tensor(tensor).bytes;
      return { segment: "weights", offset: byteOffset - bundle.mapping.bytes.byteOffset };
    },
  });
  const observers = options.observe && new Observers(plan, options.observe);
  const lanes = lanesOf(plan, encoder, { mode, threads: options.threads }, observers);
  return new CpuExecutor(bundle, memory, mode, lanes, observers);
}

export class CpuExecutor extends PagedExecutor {
  readonly name: string;
  /** How corrections run: what was asked, or what the plan chose. */
  readonly mode: ProgramMode;
  /** Of each lane. */
  readonly threads: readonly number[];
  /** Operations of the backbone's program, in the order of `trace`. */
  readonly operations: readonly string[];
  readonly #device: CpuDevice;
  readonly #observers: Observers | undefined;

  constructor(
    bundle: MappedBundle,
    memory: Memory,
    mode: ProgramMode,
    lanes: readonly Lane[],
    observers: Observers | undefined,
  ) {
    const device = new CpuDevice(bundle, memory, lanes, observers);
    super(bundle.plan.model, memory, device);
    this.#device = device;
    this.#observers = observers;
    this.mode = mode;
    this.threads = lanes.map((lane) => lane.threads);
    this.operations = lanes[0]!.program.map((instruction) => instruction.op);
    this.name = `cpu (${instructionSet()}, ${this.threads.reduce((sum, n) => sum + n)} threads)`;
  }

  /** What observers have added up by window, over every token since the executor was made. Views of its memory. */
  get observations(): ReadonlyMap<string, Float64Array> {
    return this.#observers?.sums() ?? new Map();
  }

  /** Nanoseconds of the last step in each of `operations`; the first call switches tracing on. */
  trace(): Float64Array {
    return this.#device.engine.trace();
  }
}

class CpuDevice implements StepDevice {
  readonly engine: Engine;
  readonly inputs: StepInputs;
  readonly logits: Float32Array;
  readonly #memory: Memory;
  readonly #cache: NativeBuffer;
  readonly #mailbox: Int32Array;

  constructor(
    bundle: MappedBundle,
    memory: Memory,
    lanes: readonly Lane[],
    observers: Observers | undefined,
  ) {
    const { bytes, limits } = memory;
    // Until the engine holds the memory, a failure gives it back.
    using owned = new DisposableStack();
    const take = (length: number) => owned.use(allocate(length));
    const cache = take(bytes.cache), tables = take(bytes.tables), step = take(bytes.step);
    const mailbox = take(bytes.mailbox), logits = take(bytes.logits);
    const observations = take(observers?.bytes ?? 0);
    observers?.attach(observations);
    fillRotations(tables, bundle.plan, memory);
    this.engine = new Engine({
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
      capacity: limits.capacity,
    });
    owned.move();
    this.#memory = memory;
    this.#cache = cache;
    this.inputs = new StepInputs(step, memory);
    this.#mailbox = new Int32Array(mailbox.bytes.buffer, mailbox.bytes.byteOffset, 1);
    this.logits = new Float32Array(logits.bytes.buffer, logits.bytes.byteOffset, bytes.logits / 4);
  }

  step(counts: StepCounts): StepStatus {
    return this.engine.step(counts);
  }

  stepAsync(counts: StepCounts): Promise<StepStatus> {
    return this.engine.stepAsync(counts);
  }

  abort(): void {
    Atomics.store(this.#mailbox, 0, 1);
  }

  rearm(): void {
    Atomics.store(this.#mailbox, 0, 0);
  }

  copyPage(from: number, to: number): void {
    copyPage(this.#cache, this.#memory, from, to);
  }

  [Symbol.dispose](): void {
    this.engine[Symbol.dispose]();
  }
}

export function checkThreads(threads: number): void {
  const most = 4 * cpus().length;
  if (Number.isInteger(threads) && threads >= 1 && threads <= most) return;
  throw new HcinferError("usage", `--threads ${threads}: expected 1 to ${most} on this machine`);
}

function copyPage(cache: NativeBuffer, { caches }: Memory, from: number, to: number): void {
  for (const { k, v, pageBytes } of caches.values()) {
    for (const base of [k, v]) {
      cache.view(base + to * pageBytes, pageBytes).set(cache.view(base + from * pageBytes, pageBytes));
    }
  }
}
