/**
 * The kernel of sparse corrections by itself: a step that sums rows chosen at random, a tenth of each window's, and does so
 * for `CHOICES` tokens one after the other, so that what a cache holds of one step is gone before the next.
 */
import { Engine } from "../ffi/engine.ts";
import type { Instruction, Operand } from "../ffi/instructions.ts";
import { allocate, type NativeBuffer, type NativeMemory } from "../ffi/mapping.ts";

/** Rows of a window, and how many of them a token reads. */
const INPUTS = 2048, CHOSEN = 205;
const WIDTH = 4;
const CHOICES = 4;

/** What a window has in the arena: chosen indices, coefficients, and their scale, sum and count. */
const CHOICE = { index: 0, coefficient: 4 * CHOSEN, scale: 6 * CHOSEN + 2, bytes: 6 * CHOSEN + 14 } as const;

export class Gather implements Disposable {
  readonly #arena: NativeBuffer;
  readonly #engine: Engine;
  /** Of windows, for every token. */
  readonly #sums: number;
  readonly #outputs: number;

  /**
   * @param rows where codes of 4 bits lie, many times larger than any cache; it stays the caller's
   * @param rowBytes of a row, a multiple of 32
   * @param barriers whether threads meet after every window, as in a model's step
   */
  constructor(rows: NativeMemory, readonly rowBytes: number, threads: number, readonly barriers: boolean) {
    const windows = Math.floor(rows.byteLength / (INPUTS * rowBytes));
    this.#sums = CHOICES * windows;
    this.#outputs = 8 * rowBytes / WIDTH;
    this.#arena = allocate(this.#choice(this.#sums));
    for (let sum = 0; sum < this.#sums; sum++) this.#choose(sum);
    const program = Array.from({ length: this.#sums }, (_, sum) => this.#sum(sum, sum % windows));
    this.#engine = new Engine({
      lanes: [{ program, threads }],
      memory: { weights: rows, arena: this.#arena },
      capacity: 1,
    });
  }

  /** Bytes of codes per second in a step. */
  measure(): number {
    const began = performance.now();
    this.#engine.step({ tokens: 1, rows: 1, tiles: 1, mode: "decode" });
    return this.#sums * CHOSEN * this.rowBytes / (performance.now() - began) * 1000;
  }

  #choose(sum: number): void {
    const at = this.#choice(sum);
    const order = Float64Array.from({ length: INPUTS }, () => Math.random());
    const rows = Int32Array.from({ length: INPUTS }, (_, row) => row).sort((a, b) => order[a]! - order[b]!);
    const put = (
      offset: number,
      { buffer, byteOffset, byteLength }: Int32Array | Int16Array | Float32Array,
    ) => this.#arena.view(at + offset, byteLength).set(new Uint8Array(buffer, byteOffset, byteLength));
    put(CHOICE.index, rows.subarray(0, CHOSEN).sort());
    put(CHOICE.coefficient, Int16Array.from({ length: CHOSEN }, (_, n) => 7 * n + 1));
    put(CHOICE.scale, Float32Array.of(1));
    put(CHOICE.scale + 4, Int32Array.of(0, CHOSEN));
  }

  #sum(sum: number, window: number): Instruction {
    const arena = (offset: number): Operand => ({ segment: "arena", offset });
    const choice = this.#choice(sum);
    return {
      op: "sparseSum",
      operands: {
        residualCodes: { segment: "weights", offset: window * INPUTS * this.rowBytes },
        outputScale: arena(0),
        channelScale: arena(0),
        norm: arena(0),
        index: arena(choice + CHOICE.index),
        coefficient: arena(choice + CHOICE.coefficient),
        selectionScale: arena(choice + CHOICE.scale),
        selectionSum: arena(choice + CHOICE.scale + 4),
        selectionCount: arena(choice + CHOICE.scale + 8),
        delta: arena(this.#scales()),
      },
      integers: {
        channels: CHOSEN,
        deltaStride: this.#outputs,
        residualWidth: WIDTH,
        residualInputs: INPUTS,
        residualOutputs: this.#outputs,
        rowBytes: this.rowBytes,
      },
      reals: {},
      over: "tokens",
      when: "always",
      barrier: this.barriers,
      awaits: 0,
    };
  }

  /** Bytes of any scales, which are zeros at the arena's start; the sums follow. */
  #scales(): number {
    return 4 * Math.max(INPUTS, this.#outputs);
  }

  #choice(sum: number): number {
    return this.#scales() + 4 * this.#outputs + sum * CHOICE.bytes;
  }

  [Symbol.dispose](): void {
    this.#engine[Symbol.dispose]();
  }
}
