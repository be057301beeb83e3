/** The head of a step's inputs: what kernels are told of the step beside its tokens, and what they report (kernels/call.h). */
import { STEP_REPORT_BYTES } from "../../../compiler/memory.ts";
import type { Context } from "../../../ffi/cuda/context.ts";
import { type DeviceMemory, PinnedMemory } from "../../../ffi/cuda/memory.ts";
import type { Stream } from "../../../ffi/cuda/stream.ts";
import type { StepStatus } from "../../../ffi/engine.ts";

/** Byte offsets of StepReport's fields. */
const NUMBER = 0, OVERFLOW = 8, PATIENCE = 16, STOPPED = 24, LOST = 28;
const NO_OVERFLOW = 2n ** 64n - 1n;

/** Where the step's number stands: a u64. */
export const REPORT_NUMBER = NUMBER;
/** Where a step that runs can be stopped from outside: a u32. */
export const STOPPED_OFFSET = STOPPED;

export class StepReport implements Disposable {
  /** What comes back. */
  readonly #pinned: PinnedMemory;
  readonly #up: DataView;
  readonly #back: DataView;

  /** @param inputs of a step: the report stands at their head when they go up */
  constructor(context: Context, inputs: PinnedMemory) {
    this.#pinned = PinnedMemory.allocate(context, STEP_REPORT_BYTES);
    const view = (memory: PinnedMemory) => {
      const { buffer, byteOffset } = memory.view(0, STEP_REPORT_BYTES).fill(0);
      return new DataView(buffer, byteOffset, STEP_REPORT_BYTES);
    };
    this.#up = view(inputs);
    this.#back = view(this.#pinned);
  }

  /** @param patience milliseconds */
  write(number: bigint, patience: number): void {
    this.#up.setBigUint64(NUMBER, number, true);
    this.#up.setBigUint64(OVERFLOW, NO_OVERFLOW, true);
    this.#up.setBigUint64(PATIENCE, BigInt(Math.round(1e6 * patience)), true);
    this.#up.setUint32(STOPPED, 0, true);
    this.#up.setUint32(LOST, 0, true);
  }

  /** What goes up from here on, until the next step is written, is of a step that is over. */
  stop(): void {
    this.#up.setUint32(STOPPED, 1, true);
  }

  /** Orders its way back. */
  fetch(from: DeviceMemory, stream: Stream): void {
    from.readAsync(stream, this.#pinned);
  }

  get stopped(): boolean {
    return this.#back.getUint32(STOPPED, true) !== 0;
  }

  get lost(): boolean {
    return this.#back.getUint32(LOST, true) !== 0;
  }

  /** The first key or value that f16 does not hold. */
  get overflow(): Extract<StepStatus, { readonly status: "overflow" }> | undefined {
    const code = this.#back.getBigUint64(OVERFLOW, true);
    if (code === NO_OVERFLOW) return undefined;
    const low = Number(code & 0xffff_ffffn);
    return {
      status: "overflow",
      layer: Number(code >> 32n),
      token: low >>> 1,
      what: low % 2 === 0 ? "key" : "value",
    };
  }

  [Symbol.dispose](): void {
    this.#pinned.close();
  }
}
