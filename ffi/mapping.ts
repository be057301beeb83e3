/**
 * Memory outside JavaScript's heap: files mapped read-only, and buffers aligned for SIMD (and, in cuda/memory.ts, memory
 * that a GPU reads too). A Uint8Array of it is an
 * ordinary one that can be passed to native calls, but it must not be used after close(): the owner keeps the
 * memory alive, not the view.
 */
import { type ErrorKind, HcinferError } from "../compiler/errors.ts";
import { library } from "./open.ts";

const MESSAGE_BYTES = 256;

export abstract class NativeMemory implements Disposable {
  #address: Deno.PointerObject | null;

  constructor(address: Deno.PointerObject | null, readonly byteLength: number) {
    this.#address = address;
  }

  /** For ffi/ alone: the address native code is given. */
  static addressOf(memory: NativeMemory): Deno.PointerValue {
    return memory.#address;
  }

  /** `length` bytes from `offset`, without a copy. */
  view(offset: number, length: number): Uint8Array<ArrayBuffer> {
    if (offset < 0 || length < 0 || offset + length > this.byteLength) {
      throw new RangeError(`bytes ${offset}..${offset + length} of ${this.byteLength}`);
    }
    if (length === 0) return new Uint8Array(0);
    if (this.#address === null) throw new Error("the memory is closed");
    return new Uint8Array(Deno.UnsafePointerView.getArrayBuffer(this.#address, length, offset));
  }

  /** Gives the memory at `address` back to where it is from. */
  protected abstract free(address: Deno.PointerObject): void;

  /** Gives the memory back; every view of it is invalid from here on. A second call does nothing. */
  close(): void {
    const address = this.#address;
    this.#address = null;
    if (address !== null) this.free(address);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Memory of pages that our own library mapped. */
abstract class Pages extends NativeMemory {
  #bytes: Uint8Array<ArrayBuffer> | undefined;

  /** All of it. What is too large for one Uint8Array is read with `view`. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#bytes ??= this.view(0, this.byteLength);
  }

  protected override free(address: Deno.PointerObject): void {
    library().hc_unmap(address, BigInt(this.byteLength));
  }
}

/** A file's bytes, mapped read-only: pages are read when they are touched. Writing to them ends the process. */
export class Mapping extends Pages {}

/** Zeroed memory that starts at a page boundary (so at a multiple of 64 bytes). Untouched pages cost nothing. */
export class NativeBuffer extends Pages {}

/**
 * Maps the ordinary file at `path`. Throws HcinferError(kind) with the reason when it is none or cannot be read. When
 * the file is cut off while it is mapped, the process ends with a message and exit code 6 at the first byte that is
 * gone: there is nothing to go on with.
 */
export function mapFile(path: string, kind: ErrorKind = "input"): Mapping {
  const size = new BigUint64Array(1);
  const message = new Uint8Array(MESSAGE_BYTES);
  const address = library().hc_map_file(new TextEncoder().encode(`${path}\0`), size, message);
  if (message[0] !== 0) {
    const text = new TextDecoder().decode(message.subarray(0, message.indexOf(0)));
    throw new HcinferError(kind, `cannot read ${path}: ${text}`);
  }
  return new Mapping(address, Number(size[0]));
}

/**
 * Allocates `bytes` zeroed bytes. Throws HcinferError("environment") when the system has no room for them.
 * @param pages huge ones, where the system has them, are read faster here and there, and are taken as a whole by the first
 *   touch: not for a cache of a long context
 */
export function allocate(bytes: number, pages: "small" | "huge" = "small"): NativeBuffer {
  if (!Number.isSafeInteger(bytes) || bytes < 0) throw new RangeError(`cannot allocate ${bytes} bytes`);
  if (bytes === 0) return new NativeBuffer(null, 0);
  const address = library().hc_allocate(BigInt(bytes), pages === "huge" ? 1 : 0);
  if (address === null) {
    const size = (bytes / 2 ** 30).toFixed(2);
    throw new HcinferError("environment", `out of memory: ${size} GiB more are needed`);
  }
  return new NativeBuffer(address, bytes);
}
