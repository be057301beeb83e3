/**
 * The native engine: a program of instructions bound to memory, run by one group of threads a lane. One call a step.
 */
import { HcinferError } from "../compiler/errors.ts";
import { type Instruction, type Segment, SEGMENTS } from "./instructions.ts";
import { encode } from "./records.ts";
import { NativeMemory } from "./mapping.ts";
import { library } from "./open.ts";
import { ENGINE_FAILURE, STEP_STATUS } from "./symbols.ts";

const MODES = ["prefill", "decode"] as const;

/** What the native wait for another device needs: functions of its driver, handles of it, and the mailbox's abort flag. */
export interface DeviceWait {
  readonly setCurrent: Deno.PointerValue;
  readonly synchronize: Deno.PointerValue;
  readonly context: bigint;
  readonly stream: bigint;
  readonly abort: Int32Array;
}

export interface EngineOptions {
  /** 1 to 8 programs that run side by side and meet at events. Thread 0 of the first is the caller of a step. */
  readonly lanes: readonly { readonly program: readonly Instruction[]; readonly threads: number }[];
  /**
   * What the segments of operands are; one that no operand names may be left out. Held until the engine is disposed of, which
   * closes all but the weights.
   */
  readonly memory: Readonly<Partial<Record<Segment, NativeMemory>>>;
  /** Milliseconds that a wait for a partner on another device may last; absent: there is none. */
  readonly patience?: number;
  /** The most tokens, rows and tiles of a step. Operands must cover as many. */
  readonly capacity: number;
}

/** What of a step is not in its memory (segment `step`): how many tokens, gathered rows and tiles there are. */
export interface StepCounts {
  readonly tokens: number;
  readonly rows: number;
  readonly tiles: number;
  /** prefill: linears add the whole residual. decode: what runs only then does, and merged values have their sparse delta. */
  readonly mode: typeof MODES[number];
}

/**
 * aborted: the abort flag of the mailbox was set while the step ran; what it computed is incomplete.
 * overflow: a key or value that f16 does not hold (infinite, NaN, or rounded to infinity) went into the cache: the first, in
 * the order of layers and tokens of the step.
 * lost: the partner on another device did not signal within the engine's patience.
 */
export type StepStatus =
  | { readonly status: "done" }
  | { readonly status: "aborted" }
  | { readonly status: "lost" }
  | {
    readonly status: "overflow";
    readonly layer: number;
    readonly token: number;
    readonly what: "key" | "value";
  };

/** The instruction set the kernels use: `avx512vnni`, `avx512`, `avx2`, `neon` or `scalar`. */
export function instructionSet(): string {
  const name = library().hc_isa();
  if (name === null) throw new HcinferError("environment", text(library().hc_engine_error()));
  return text(name);
}

export class Engine implements Disposable {
  /** Bytes of scratch of all threads. */
  readonly scratchBytes: number;
  #engine: Deno.PointerObject | null;
  /** Native code reads the memory for as long as the engine lives. */
  readonly #memory: EngineOptions["memory"];
  readonly #capacity: number;
  readonly #length: number;
  #running = false;

  /**
   * @throws {HcinferError} "bundle" when a program is refused (what it would touch lies outside its memory, or its lanes
   *   would wait for ever), "environment" for an unknown HCINFER_ISA or a lack of memory or threads
   */
  constructor(options: EngineOptions) {
    instructionSet();
    const { lanes, capacity } = options;
    this.#memory = options.memory;
    this.#capacity = capacity;
    this.#length = lanes[0]?.program.length ?? 0;
    const memory = SEGMENTS.map((segment) => options.memory[segment]);
    this.#engine = library().hc_engine_create(
      encode(lanes.flatMap(({ program }) => program)),
      bytesOf(BigInt64Array.from(lanes, ({ program }) => BigInt(program.length))),
      bytesOf(Int32Array.from(lanes, ({ threads }) => threads)),
      lanes.length,
      bytesOf(
        BigUint64Array.from(
          memory,
          (m) => BigInt(Deno.UnsafePointer.value(m ? NativeMemory.addressOf(m) : null)),
        ),
      ),
      bytesOf(BigInt64Array.from(memory, (m) => BigInt(m?.byteLength ?? 0))),
      capacity,
      BigInt(Math.round(1e6 * (options.patience ?? 0))),
    );
    if (this.#engine === null) {
      const message = text(library().hc_engine_error());
      if (library().hc_engine_failure() === ENGINE_FAILURE.environment) {
        throw new HcinferError("environment", message);
      }
      throw new HcinferError("bundle", `the program is refused: ${message}`);
    }
    this.scratchBytes = Number(library().hc_engine_scratch_bytes(this.#engine));
  }

  /**
   * Runs one step. Returns when all lanes are done.
   * @throws {RangeError} for counts beyond the capacity
   */
  step(counts: StepCounts): StepStatus {
    const engine = this.#rest();
    return this.#status(library().hc_engine_step(engine, ...numbers(counts)), counts);
  }

  /** `step` on another thread: JavaScript goes on meanwhile, but must not start a second step. */
  async stepAsync(counts: StepCounts): Promise<StepStatus> {
    const engine = this.#rest();
    this.#running = true;
    try {
      library().hc_engine_announce(engine);
      const status = await library().hc_engine_step_async(engine, ...numbers(counts));
      return this.#engine === null ? { status: "aborted" } : this.#status(status, counts);
    } finally {
      this.#running = false;
    }
  }

  /**
   * Begins a step on another thread. What is returned waits for its end, and must be called; the engine does nothing else until
   * then.
   * @throws {HcinferError} "environment" when no thread starts
   */
  begin(counts: StepCounts): () => StepStatus {
    const engine = this.#rest();
    if (library().hc_engine_begin(engine, ...numbers(counts)) !== 0) {
      throw new HcinferError("environment", text(library().hc_engine_error()));
    }
    this.#running = true;
    return () => {
      this.#running = false;
      return this.#status(library().hc_engine_join(engine), counts);
    };
  }

  /** `stepAsync` beside a step that was ordered on another device: returns when both are over. */
  async stepBeside(
    counts: StepCounts,
    { setCurrent, synchronize, context, stream, abort }: DeviceWait,
  ): Promise<{
    readonly status: StepStatus;
    /** What the driver says of the wait: 0 is success. */
    readonly driver: number;
  }> {
    const engine = this.#rest();
    this.#running = true;
    const driver = new Int32Array(new ArrayBuffer(4));
    try {
      library().hc_engine_announce(engine);
      const wait = [setCurrent, synchronize, context, stream, bytesOf(abort), bytesOf(driver)] as const;
      const status = await library().hc_device_step(engine, ...numbers(counts), ...wait);
      const isClosed = this.#engine === null;
      return { status: isClosed ? { status: "aborted" } : this.#status(status, counts), driver: driver[0]! };
    } finally {
      this.#running = false;
    }
  }

  /**
   * Nanoseconds that the last step spent in each instruction of lane 0, as its thread 0 saw it. The first call switches
   * tracing on and returns zeros.
   */
  trace(): Float64Array {
    const times = new BigInt64Array(this.#length + 1);
    library().hc_engine_trace(this.#rest(), bytesOf(times), BigInt(times.length));
    return Float64Array.from({ length: this.#length }, (_, n) => Number(times[n + 1]! - times[n]!));
  }

  /** Ends the threads; the memory stays. A step that runs is aborted and waited for. */
  close(): void {
    if (this.#engine !== null) library().hc_engine_destroy(this.#engine);
    this.#engine = null;
  }

  [Symbol.dispose](): void {
    this.close();
    for (const segment of SEGMENTS) if (segment !== "weights") this.#memory[segment]?.close();
  }

  /** The engine, which runs no step. */
  #rest(): Deno.PointerObject {
    if (this.#engine === null) throw new Error("the engine is closed");
    if (this.#running) throw new Error("a step is running");
    return this.#engine;
  }

  #status(status: number, counts: StepCounts): StepStatus {
    switch (status) {
      case STEP_STATUS.done:
        return { status: "done" };
      case STEP_STATUS.aborted:
        return { status: "aborted" };
      case STEP_STATUS.lost:
        return { status: "lost" };
      case STEP_STATUS.overflow: {
        const found = new Int32Array(3);
        library().hc_engine_overflow(this.#engine, bytesOf(found));
        const [layer, token, what] = found;
        return { status: "overflow", layer: layer!, token: token!, what: what === 0 ? "key" : "value" };
      }
    }
    const { tokens, rows, tiles } = counts;
    throw new RangeError(
      `a step of ${tokens} tokens, ${rows} rows and ${tiles} tiles: expected 0 to ${this.#capacity} of each`,
    );
  }
}

/**
 * Checks a program that another device runs: that each operand lies in its segment's memory, and its integers in their ranges.
 * @param sizes bytes of each segment; one that is left out is empty
 * @throws {HcinferError} "bundle" for what the table's rules refuse
 */
export function checkProgram(
  program: readonly Instruction[],
  sizes: Readonly<Partial<Record<Segment, number>>>,
  capacity: number,
): void {
  const bytes = BigInt64Array.from(SEGMENTS, (segment) => BigInt(sizes[segment] ?? 0));
  if (library().hc_engine_check(encode(program), BigInt(program.length), bytesOf(bytes), capacity) === 0) {
    return;
  }
  throw new HcinferError("bundle", `the program is refused: ${text(library().hc_engine_error())}`);
}

function numbers({ tokens, rows, tiles, mode }: StepCounts): [number, number, number, number] {
  return [tokens, rows, tiles, MODES.indexOf(mode)];
}

/** Index of the largest logit, the first among equals. */
export function argmax(logits: Float32Array): number {
  return Number(library().hc_argmax(bytesOf(logits), BigInt(logits.length)));
}

/** Negative log-likelihood of `target` and KL(reference || logits), both in nats; 0 without a reference. */
export function tokenLoss(
  logits: Float32Array,
  target: number,
  reference?: Float32Array,
): { nll: number; kl: number } {
  const nll = new Float64Array(1), kl = new Float64Array(1);
  library().hc_token_loss(
    bytesOf(logits),
    reference ? bytesOf(reference) : null,
    BigInt(logits.length),
    BigInt(target),
    bytesOf(nll),
    bytesOf(kl),
  );
  return { nll: nll[0]!, kl: kl[0]! };
}

function bytesOf(
  array: Float32Array | Float64Array | Int32Array | BigInt64Array | BigUint64Array,
): Uint8Array<ArrayBuffer> {
  return new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);
}

function text(pointer: Deno.PointerValue): string {
  return pointer === null ? "" : Deno.UnsafePointerView.getCString(pointer);
}
