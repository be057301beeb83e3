/**
 * A file written in any order, which reaches the system in large aligned blocks all the same: file systems that keep what they
 * cache in units as large as the writes then map it in huge pages (ffi/simd/mapping.cpp), and rows that lie far apart are read
 * without page walks.
 */
import { ftruncateSync, readSync, writeSync } from "node:fs";

/** A huge page. */
const BLOCK_BYTES = 2 ** 21;

/** Blocks that are kept until they are likely complete: as many as places that are written at in turn, and some. */
const MOST_BLOCKS = 8;

/** Reads and writes of 2 GiB or more are cut short on some systems. */
const MOST_BYTES_AT_ONCE = 2 ** 30;

export class BlockFile {
  /** Begun and not written, by number, the least recently used first. */
  readonly #begun = new Map<number, Uint8Array>();
  readonly #written = new Set<number>();

  #bytes = 0;

  /** @param descriptor of an empty file open for reading and writing; the caller closes it */
  constructor(readonly descriptor: number) {}

  /** Makes the file as long; what is written lies inside. */
  resize(bytes: number): void {
    this.flush();
    ftruncateSync(this.descriptor, bytes);
    this.#bytes = bytes;
  }

  /** Throws what the system does, here or later. */
  write(bytes: Uint8Array, position: number): void {
    for (let done = 0; done < bytes.length;) {
      const at = position + done, block = Math.floor(at / BLOCK_BYTES), offset = at % BLOCK_BYTES;
      const isWhole = offset === 0 && bytes.length - done >= BLOCK_BYTES;
      const whole = isWhole ? Math.floor((bytes.length - done) / BLOCK_BYTES) * BLOCK_BYTES : 0;
      const part = bytes.subarray(
        done,
        done + (whole || Math.min(bytes.length - done, BLOCK_BYTES - offset)),
      );
      if (isWhole || this.#written.has(block)) this.#put(part, at);
      else this.#begin(block).set(part, offset);
      done += part.length;
    }
  }

  /** Fills `bytes` from `position` on; returns how many there were. */
  read(bytes: Uint8Array, position: number): number {
    this.flush();
    for (let done = 0; done < bytes.length;) {
      const length = Math.min(bytes.length - done, MOST_BYTES_AT_ONCE);
      const read = readSync(this.descriptor, bytes, done, length, position + done);
      if (read === 0) return done;
      done += read;
    }
    return bytes.length;
  }

  /** Writes what is kept. */
  flush(): void {
    for (const block of [...this.#begun.keys()]) this.#end(block);
  }

  #begin(block: number): Uint8Array {
    const bytes = this.#begun.get(block) ?? new Uint8Array(BLOCK_BYTES);
    this.#begun.delete(block);
    this.#begun.set(block, bytes);
    const [oldest] = this.#begun.keys();
    if (this.#begun.size > MOST_BLOCKS) this.#end(oldest!);
    return bytes;
  }

  /** What comes for this block later is written by itself. */
  #end(block: number): void {
    const bytes = this.#begun.get(block)!, at = block * BLOCK_BYTES;
    this.#begun.delete(block);
    this.#written.add(block);
    this.#put(bytes.subarray(0, this.#bytes - at), at);
  }

  #put(bytes: Uint8Array, position: number): void {
    for (let done = 0; done < bytes.length;) {
      const length = Math.min(bytes.length - done, MOST_BYTES_AT_ONCE);
      done += writeSync(this.descriptor, bytes, done, length, position + done);
    }
  }
}
