/**
 * All memory of a plan on a GPU and the CPU beside it, as compiler/memory.ts plans it: the GPU's within its limit; pinned memory
 * for what both sides see; and what the CPU's lane has for itself.
 */
import { HcinferError } from "../../../compiler/errors.ts";
import { EVENT_BYTES, MAILBOX_EVENTS, type Memory } from "../../../compiler/memory.ts";
import type { Context } from "../../../ffi/cuda/context.ts";
import { DeviceMemory, PinnedMemory } from "../../../ffi/cuda/memory.ts";
import { EventWait } from "../../../ffi/cuda/event_wait.ts";
import type { Stream } from "../../../ffi/cuda/stream.ts";
import type { EngineOptions } from "../../../ffi/engine.ts";
import { allocate, type NativeMemory } from "../../../ffi/mapping.ts";
import type { Operand, Segment } from "../../../ffi/instructions.ts";
import type { MappedBundle } from "../cpu/executor.ts";
import { fillRotations } from "../rotations.ts";
import type { Surroundings } from "./launcher.ts";
import { Logits } from "./logits.ts";
import { REPORT_NUMBER, StepReport, STOPPED_OFFSET } from "./report.ts";
import { type Staging, upload } from "./tensors.ts";

/** Byte offset of the step's number in the mailbox. */
const NUMBER = 64;
/** Rows of logits that there is room for at first. */
const FIRST_ROWS = 64;
const STOP = Uint8Array.of(1, 0, 0, 0);

export interface MemoryParts {
  readonly context: Context;
  readonly bundle: MappedBundle;
  readonly memory: Memory;
  readonly staging: Staging;
  /** Bytes of the GPU's memory that may be taken. */
  readonly limit: number;
}

export class CudaMemory implements Disposable {
  /** The step's report and inputs, which both sides read, and their copy on the GPU. */
  readonly inputs: PinnedMemory;
  readonly report: StepReport;
  readonly logits: Logits;
  /** In the mailbox: the flag that ends a step, and the number of the last. */
  readonly abortFlag: Int32Array;
  readonly number: BigUint64Array;
  /** What kernels are given. */
  readonly around: Surroundings;
  /** Bytes of the segments that kernels name. */
  readonly extents: Readonly<Partial<Record<Segment, number>>>;
  /** The segments of the CPU's lane. */
  readonly engine: EngineOptions["memory"];
  readonly #memory: Memory;
  readonly #mailbox: PinnedMemory;
  readonly #owned: DisposableStack;
  readonly #step: DeviceMemory;
  readonly #cache: DeviceMemory | undefined;
  readonly #hostCache: NativeMemory;
  #taken = 0;

  /**
   * Takes it and fills it: weights and tables are there when this returns, copied in `copies`.
   * @throws {HcinferError} "usage": beyond the limit; "environment": no room
   */
  constructor(parts: MemoryParts, copies: Stream) {
    const { context, bundle, memory, staging } = parts;
    this.#memory = memory;
    // Until it is whole, a failure gives everything back.
    using owned = new DisposableStack();
    const device = (bytes: number, what: string) => this.#take(parts, owned, bytes, what);
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
    const twin = pinned(memory.bytes.arena), mailbox = pinned(memory.bytes.mailbox);
    this.#mailbox = mailbox;
    this.inputs = pinned(memory.bytes.step);
    this.report = owned.use(new StepReport(context, this.inputs));
    // The engine's memory stays where it is: where the head is on the CPU, there is room for all rows at once.
    const { capacity } = memory.limits, isOnGpu = isHeadOnGpu(bundle);
    const rows = isOnGpu ? Math.min(capacity, FIRST_ROWS) : capacity;
    this.logits = owned.use(new Logits(context, bundle.plan.model.vocabularySize, rows));
    this.#hostCache = owned.use(allocate(memory.bytes.cache));
    const hostTables = owned.use(allocate(memory.bytes.tables));

    twin.view(0, twin.byteLength).fill(0);
    const { buffer, byteOffset } = mailbox.view(0, mailbox.byteLength).fill(0);
    this.abortFlag = new Int32Array(buffer, byteOffset, 1);
    this.number = new BigUint64Array(buffer, byteOffset + NUMBER, 1);
    this.#step.fill(0);
    fillRotations(hostTables, bundle.plan, memory);
    if (tables) tables.write(hostTables.view(0, hostTables.byteLength));
    if (weights) upload(context, memory, (tensor) => bundle.tensor(tensor).bytes, weights, copies);
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
    this.around = {
      addressOf: ({ segment, offset }: Operand) => {
        if (segment === "staging") return staging.address(offset);
        if (segment === "logits") return this.logits.memory.deviceAddress + BigInt(offset);
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
    this.extents = {
      weights: sizes.weights,
      arena: sizes.arena,
      cache: sizes.cache,
      tables: sizes.tables,
      step: memory.bytes.step,
      logits: memory.bytes.logits,
      twin: memory.bytes.arena,
      staging: staging.extent,
    };
    this.engine = {
      weights: bundle.mapping,
      arena: twin,
      cache: this.#hostCache,
      tables: hostTables,
      step: this.inputs,
      mailbox,
      ...(isOnGpu ? {} : { logits: this.logits.memory }),
    };
    this.#owned = owned.move();
  }

  /** Bytes of the GPU's memory that it holds. */
  get deviceBytes(): number {
    return this.#taken;
  }

  /** Orders the report and the inputs of a step of so many runs on their way up. */
  orderUp(stream: Stream, runs: number): void {
    const { inputs: { pages }, mostPages } = this.#memory;
    // Page tables come last, and only the first are of this step.
    this.#step.writeAsync(stream, this.inputs, { length: pages + 4 * mostPages * runs });
  }

  /** A wait for an event of the CPU that holds no kernel. */
  waitFor(event: number): EventWait {
    const memory = this.#mailbox;
    return new EventWait(
      { memory, offset: MAILBOX_EVENTS + EVENT_BYTES * event },
      { memory: this.inputs, offset: REPORT_NUMBER },
      { memory, offset: 0 },
    );
  }

  /** Orders the report back. */
  orderReport(stream: Stream): void {
    this.report.fetch(this.#step, stream);
  }

  /** Says to kernels that wait for nobody that the step is over, whether its inputs are there yet or not. */
  stop(): void {
    this.report.stop();
    this.#step.write(STOP, STOPPED_OFFSET);
  }

  /** After a step that was stopped: blocks that left early were not counted. */
  resetArrivals(): void {
    this.#step.fill(0, { offset: this.#memory.arrivals });
  }

  copyPage(from: number, to: number, stream: Stream): void {
    for (const { device, k, v, pageBytes } of this.#memory.caches.values()) {
      for (const base of [k, v]) {
        const range = {
          offset: base + to * pageBytes,
          fromOffset: base + from * pageBytes,
          length: pageBytes,
        };
        if (device === "gpu") {
          this.#cache!.copyAsync(stream, this.#cache!, range);
        } else {
          this.#hostCache.view(range.offset, pageBytes).set(
            this.#hostCache.view(range.fromOffset, pageBytes),
          );
        }
      }
    }
  }

  [Symbol.dispose](): void {
    this.#owned[Symbol.dispose]();
  }

  /** Memory of the GPU, within the limit; undefined for none. */
  #take(
    { limit, context }: MemoryParts,
    owned: DisposableStack,
    bytes: number,
    what: string,
  ): DeviceMemory | undefined {
    if (bytes === 0) return undefined;
    this.#taken += bytes;
    if (this.#taken > limit) {
      const gib = (n: number) => `${(n / 2 ** 30).toFixed(2)} GiB`;
      throw new HcinferError(
        "usage",
        `${what} need ${gib(bytes)} of the GPU's memory and ${gib(this.#taken - bytes)} are taken, of ${
          gib(limit)
        } ` +
          "that are allowed: allow more, choose fewer bits or a shorter context",
      );
    }
    return owned.use(DeviceMemory.allocate(context, bytes));
  }
}

function isHeadOnGpu({ plan: { graph } }: MappedBundle): boolean {
  const head = graph.nodes.find((node) => node.outputs.some(({ name }) => graph.outputs.includes(name)));
  return head?.placement.device === "gpu";
}
