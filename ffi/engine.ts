/**
 * The native engine: a program of instructions bound to memory, run by two groups of threads. One call a step.
 */
import { HcinferError } from "../compiler/errors.ts";
import { encode, type Instruction, type Segment, SEGMENTS } from "./instructions.ts";
import { NativeMemory } from "./mapping.ts";
import { library } from "./open.ts";

const MODES = ["prefill", "decode"] as const;
const LOGIT_ROWS = ["none", "last", "all"] as const;

export interface EngineOptions {
  readonly backbone: readonly Instruction[];
  /** Empty when corrections run in the backbone's lane or not at all. */
  readonly compensation: readonly Instruction[];
  /** What the segments of operands are. Held by the engine until it is closed. */
  readonly memory: Readonly<Record<Segment, NativeMemory>>;
  /** Number of events that signal and wait name. */
  readonly events: number;
  readonly backboneThreads: number;
  readonly compensationThreads: number;
}

/** The instruction set the kernels use: `avx512vnni`, `avx512`, `avx2`, `neon` or `scalar`. */
export function instructionSet(): string {
  const name = library().hc_isa();
  if (name === null) throw new HcinferError("environment", text(library().hc_engine_error()));
  return text(name);
}

export class Engine implements Disposable {
  #engine: Deno.PointerObject | null;
  /** Native code reads the memory for as long as the engine lives. */
  readonly #memory: EngineOptions["memory"];
  readonly #backboneLength: number;

  /** @throws {HcinferError} "bundle" when the program does not fit the memory, "environment" for an unknown HCINFER_ISA */
  constructor(options: EngineOptions) {
    instructionSet();
    this.#memory = options.memory;
    this.#backboneLength = options.backbone.length;
    const memory = SEGMENTS.map((segment) => options.memory[segment]);
    const addresses = new BigUint64Array(
      memory.map((m) => BigInt(Deno.UnsafePointer.value(NativeMemory.addressOf(m)))),
    );
    const sizes = new BigInt64Array(memory.map((m) => BigInt(m.byteLength)));
    this.#engine = library().hc_engine_create(
      encode(options.backbone),
      BigInt(options.backbone.length),
      encode(options.compensation),
      BigInt(options.compensation.length),
      new Uint8Array(addresses.buffer),
      new Uint8Array(sizes.buffer),
      options.events,
      options.backboneThreads,
      options.compensationThreads,
    );
    if (this.#engine === null) {
      throw new HcinferError(
        "bundle",
        `the plan does not fit its weights: ${text(library().hc_engine_error())}`,
      );
    }
  }

  /** Runs every instruction for `tokens` at `position`. Returns when all lanes are done. */
  step(
    tokens: Int32Array<ArrayBuffer>,
    position: number,
    mode: typeof MODES[number],
    logits: typeof LOGIT_ROWS[number],
  ): void {
    if (this.#engine === null) throw new Error("the engine is closed");
    library().hc_engine_step(
      this.#engine,
      bytesOf(tokens),
      tokens.length,
      position,
      MODES.indexOf(mode),
      LOGIT_ROWS.indexOf(logits),
    );
  }

  /**
   * Nanoseconds that the last step spent in each backbone instruction, as thread 0 saw it. The first call switches
   * tracing on and returns zeros.
   */
  trace(): Float64Array {
    const times = new BigInt64Array(this.#backboneLength + 1);
    library().hc_engine_trace(this.#engine, new Uint8Array(times.buffer), BigInt(times.length));
    return Float64Array.from({ length: this.#backboneLength }, (_, n) => Number(times[n + 1]! - times[n]!));
  }

  close(): void {
    if (this.#engine !== null) library().hc_engine_destroy(this.#engine);
    this.#engine = null;
  }

  [Symbol.dispose](): void {
    this.close();
    for (const segment of SEGMENTS) if (segment !== "weights") this.#memory[segment].close();
  }
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

function bytesOf(array: Float32Array | Float64Array | Int32Array): Uint8Array<ArrayBuffer> {
  return new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);
}

function text(pointer: Deno.PointerValue): string {
  return pointer === null ? "" : Deno.UnsafePointerView.getCString(pointer);
}
