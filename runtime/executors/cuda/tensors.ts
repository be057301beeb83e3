/**
 * The tensors that kernels read: weights, put into the GPU's memory once, and corrections, which are streamed in window by
 * window, where places are given out as programs are encoded.
 */
import { LOADING_BYTES, type Memory } from "../../../compiler/memory.ts";
import type { Context } from "../../../ffi/cuda/context.ts";
import { HostCopy } from "../../../ffi/cuda/host_copy.ts";
import { DeviceMemory, PinnedMemory } from "../../../ffi/cuda/memory.ts";
import { Event, type Stream } from "../../../ffi/cuda/stream.ts";
import type { Operand } from "../../../ffi/instructions.ts";

/** Bytes that a staged tensor starts at a multiple of. */
const ALIGNMENT = 64;

type Read = (tensor: string) => Uint8Array;

const aligned = (bytes: number) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** Copies the weights up, through two pinned buffers in turn: while one goes up, the next is read from the file. */
export function upload(
  context: Context,
  { deviceTensors }: Memory,
  read: Read,
  memory: DeviceMemory,
  stream: Stream,
): void {
  using owned = new DisposableStack();
  const buffers = [0, 1].map(() => ({
    pinned: owned.use(PinnedMemory.allocate(context, LOADING_BYTES)),
    free: owned.use(new Event(context, { isTimed: false })),
  }));
  let turn = 0;
  for (const [tensor, offset] of deviceTensors) {
    const bytes = read(tensor);
    for (let at = 0; at < bytes.length; at += LOADING_BYTES) {
      const { pinned, free } = buffers[turn++ % 2]!;
      const part = bytes.subarray(at, at + LOADING_BYTES);
      free.synchronize();
      pinned.view(0, part.length).set(part);
      memory.writeAsync(stream, pinned, { offset: offset + at, length: part.length });
      free.record(stream);
    }
  }
  stream.synchronize();
}

/** A window's tensors in its slot of `staging`. */
interface Staged {
  readonly slot: number;
  readonly tensors: Map<string, { readonly offset: number; readonly length: number }>;
  bytes: number;
}

/**
 * Corrections of a prompt, on their way. Windows take two slots in turn; the copy of one runs beside the kernels that use the
 * other. A slot has a pinned buffer, filled from the file, and a place in the GPU's memory.
 */
export class Staging {
  readonly #windows = new Map<string, Staged>();
  readonly #read: Read;
  readonly #fills = new Map<string, HostCopy>();
  #slots: Slot[] = [];
  #slotBytes = 0;
  #memory: DeviceMemory | undefined;

  constructor(read: Read) {
    this.#read = read;
  }

  /** Where a tensor will be. Windows take slots in the order in which they are first named, which is that of the program. */
  readonly place = (tensor: string, window: string): Operand => {
    let staged = this.#windows.get(window);
    if (staged === undefined) {
      staged = { slot: this.#windows.size % 2, tensors: new Map(), bytes: 0 };
      this.#windows.set(window, staged);
    }
    let at = staged.tensors.get(tensor);
    if (at === undefined) {
      at = { offset: staged.bytes, length: this.#read(tensor).length };
      staged.tensors.set(tensor, at);
      staged.bytes += aligned(at.length);
      this.#slotBytes = Math.max(this.#slotBytes, staged.bytes);
    }
    return { segment: "staging", offset: staged.slot * SLOT_SPACING + at.offset };
  };

  /** Bytes of the GPU's memory, and of pinned memory, that both slots take. */
  get bytes(): number {
    return 2 * this.#slotBytes;
  }

  attach(context: Context, memory: DeviceMemory): void {
    this.#memory = memory;
    this.#slots = [0, 1].map(() => new Slot(context, this.#slotBytes));
    for (const [window, { slot, tensors }] of this.#windows) {
      const parts = [...tensors].map(([tensor, { offset }]) => ({
        to: this.#slots[slot]!.pinned,
        offset,
        from: this.#read(tensor),
      }));
      this.#fills.set(window, new HostCopy(parts));
    }
  }

  /** Where an offset in `staging` lies. */
  address(offset: number): bigint {
    const slot = Math.floor(offset / SLOT_SPACING);
    return this.#memory!.at(slot * this.#slotBytes + offset % SLOT_SPACING);
  }

  /** Size of the segment that operands are checked against. */
  get extent(): number {
    return this.#slotBytes === 0 ? 0 : SLOT_SPACING + this.#slotBytes;
  }

  /**
   * Orders that a window is brought in: from the file to the slot's pinned buffer, from there to the GPU, where `kernels` waits
   * for it. Nothing waits here, as the kernels before may wait for the CPU.
   */
  bring(window: string, copies: Stream, kernels: Stream): void {
    const staged = this.#windows.get(window)!;
    const slot = this.#slots[staged.slot]!;
    copies.wait(slot.used);
    this.#fills.get(window)!.order(copies);
    this.#memory!.writeAsync(copies, slot.pinned, {
      offset: staged.slot * this.#slotBytes,
      length: staged.bytes,
    });
    slot.copied.record(copies);
    kernels.wait(slot.copied);
  }

  /** To be called when the last kernel that reads the window is ordered. */
  used(window: string, kernels: Stream): void {
    this.#slots[this.#windows.get(window)!.slot]!.used.record(kernels);
  }

  [Symbol.dispose](): void {
    for (const slot of this.#slots) slot[Symbol.dispose]();
    this.#slots = [];
  }
}

/** Distance of the slots in operands, whose offsets are given out before their sizes are known. */
const SLOT_SPACING = 2 ** 40;

class Slot implements Disposable {
  readonly pinned: PinnedMemory;
  readonly copied: Event;
  readonly used: Event;

  constructor(context: Context, bytes: number) {
    using owned = new DisposableStack();
    this.pinned = owned.use(PinnedMemory.allocate(context, bytes));
    this.copied = owned.use(new Event(context, { isTimed: false }));
    this.used = owned.use(new Event(context, { isTimed: false }));
    owned.move();
  }

  [Symbol.dispose](): void {
    this.pinned.close();
    this.copied[Symbol.dispose]();
    this.used[Symbol.dispose]();
  }
}
