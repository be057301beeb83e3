/**
 * Where logits are written: pinned memory of the host, which the head's kernel stores to as it goes. There is room for some rows;
 * a step that wants more of them (an evaluation does) gets more room first.
 */
import type { Context } from "../../../ffi/cuda/context.ts";
import { PinnedMemory } from "../../../ffi/cuda/memory.ts";

export class Logits implements Disposable {
  readonly #context: Context;
  readonly #vocabulary: number;
  #memory: PinnedMemory;

  constructor(context: Context, vocabulary: number, rows: number) {
    this.#context = context;
    this.#vocabulary = vocabulary;
    this.#memory = this.#take(rows);
  }

  #take(rows: number): PinnedMemory {
    return PinnedMemory.allocate(this.#context, Math.ceil(4 * rows * this.#vocabulary / 64) * 64);
  }

  get memory(): PinnedMemory {
    return this.#memory;
  }

  /** f32 [rows, vocabulary]. */
  get values(): Float32Array {
    const { buffer, byteOffset, length } = this.#memory.view(0, this.#memory.byteLength);
    return new Float32Array(buffer, byteOffset, length / 4);
  }

  /** Makes room for so many rows. True: they lie elsewhere now, and what was there is gone. */
  reserve(rows: number): boolean {
    if (4 * rows * this.#vocabulary <= this.#memory.byteLength) return false;
    this.#memory.close();
    this.#memory = this.#take(rows);
    return true;
  }

  [Symbol.dispose](): void {
    this.#memory.close();
  }
}
