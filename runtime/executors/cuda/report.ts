/** The head of a step's inputs: what kernels are told of the step beside its tokens, and what they report (kernels/call.h). */
import type { Context } from "../../../ffi/cuda/context.ts";
import { type DeviceMemory, PinnedMemory } from "../../../ffi/cuda/memory.ts";
import type { Stream } from "../../../ffi/cuda/stream.ts";
import type { StepStatus } from "../../../ffi/engine.ts";

/** Bytes before the inputs of a step. */
export const REPORT_BYTES = 64;
/** Byte offsets of StepReport's fields. */
const NUMBER = 0, OVERFLOW = 8, PATIENCE = 16, STOPPED = 24, LOST = 28;
const NO_OVERFLOW = 2n ** 64n - 1n;

/** Where a step that runs can be stopped from outside: a u32. */
export const STOPPED_OFFSET = STOPPED;

export class StepReport implements Disposable {
  /** First what goes up, then what comes back. */
  readonly #pinned: PinnedMemory;
  readonly #up: DataView;
  readonly #back: DataView;

  constructor(context: Context) {
    this.#pinned = PinnedMemory.allocate(context, 2 * REPORT_BYTES);
    const { buffer, byteOffset } = this.#pinned.view(0, 2 * REPORT_BYTES);
    this.#up = new DataView(buffer, byteOffset, REPORT_BYTES);
    this.#back = new DataView(buffer, byteOffset + REPORT_BYTES, REPORT_BYTES);
    this.#pinned.view(0, 2 * REPORT_BYTES).fill(0);
  }

  /** @param patience milliseconds */
  write(number: bigint, patience: number): void {
    this.#up.setBigUint64(NUMBER, number, true);
    this.#up.setBigUint64(OVERFLOW, NO_OVERFLOW, true);
    this.#up.setBigUint64(PATIENCE, BigInt(Math.round(1e6 * patience)), true);
    this.#up.setUint32(STOPPED, 0, true);
    this.#up.setUint32(LOST, 0, true);
  }

  orderUp(to: DeviceMemory, stream: Stream): void {
    to.writeAsync(stream, this.#pinned, { length: REPORT_BYTES });
  }

  orderBack(from: DeviceMemory, stream: Stream): void {
    from.readAsync(stream, this.#pinned, { hostOffset: REPORT_BYTES, length: REPORT_BYTES });
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
