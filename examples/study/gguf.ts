/**
 * The GGUF format, version 3 (github.com/ggml-org/ggml, docs/gguf.md): metadata, then the tensors' names, dimensions (innermost
 * first), types and offsets, then their bytes. All is little-endian; tensors begin at multiples of ALIGNMENT.
 */
import { closeSync, openSync, renameSync, writeSync } from "node:fs";
import { HcinferError } from "../../compiler/errors.ts";

const ALIGNMENT = 32;
const MAGIC = 0x46554747;
const VERSION = 3;
/** Type codes of metadata values. */
const VALUE = { u32: 4, i32: 5, f32: 6, text: 8, array: 9 } as const;
/** Bytes of a metadata value by its type code; text and arrays say theirs themselves. */
const VALUE_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, undefined, undefined, 8, 8, 8] as const;
const ALIGNMENT_KEY = "general.alignment";

export type MetadataValue =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly text: string }
  | { readonly texts: readonly string[] }
  | { readonly i32s: Int32Array<ArrayBuffer> };

export interface GgufTensor {
  readonly name: string;
  /** Innermost first: of a matrix its inputs, then its rows. */
  readonly dimensions: readonly number[];
  /** ggml's number of its type. */
  readonly type: number;
  readonly bytes: number;
  /** Its bytes, asked for when they are written. */
  readonly data: () => Uint8Array;
}

/** Writes a file; what was there before is replaced only when it is complete. Returns its size. */
export function writeGguf(
  path: string,
  metadata: Readonly<Record<string, MetadataValue>>,
  tensors: readonly GgufTensor[],
): number {
  const entries = Object.entries({ ...metadata, [ALIGNMENT_KEY]: { u32: ALIGNMENT } });
  const header = new Bytes().u32(MAGIC).u32(VERSION).u64(tensors.length).u64(entries.length);
  for (const [key, value] of entries) header.text(key).value(value);
  let offset = 0;
  for (const { name, dimensions, type, bytes } of tensors) {
    header.text(name).u32(dimensions.length);
    for (const dimension of dimensions) header.u64(dimension);
    header.u32(type).u64(offset);
    offset += aligned(bytes, ALIGNMENT);
  }
  const head = header.padded();
  const partial = `${path}.tmp`;
  const file = openSync(partial, "w");
  try {
    writeSync(file, head);
    for (const { name, bytes, data } of tensors) {
      const made = data();
      if (made.length !== bytes) {
        throw new Error(`${name} has ${made.length} bytes, not the ${bytes} it said`);
      }
      writeSync(file, new Bytes().raw(made).padded());
    }
  } finally {
    closeSync(file);
  }
  renameSync(partial, path);
  return head.length + offset;
}

export interface StoredGgufTensor {
  /** Innermost first. */
  readonly dimensions: readonly number[];
  /** ggml's number of its type. */
  readonly type: number;
  /** A view of its bytes; how many it has follows from its type. Throws HcinferError("checkpoint") beyond the file's end. */
  readonly data: (bytes: number) => Uint8Array;
}

/**
 * Tensors of a file's bytes, by name. `file` is its name for messages.
 * @throws {HcinferError} "checkpoint", when it is cut off or no GGUF of version 3
 */
export function readGguf(bytes: Uint8Array, file: string): Map<string, StoredGgufTensor> {
  const reader = new Reader(bytes, file);
  const magic = reader.u32(), version = reader.u32();
  if (magic !== MAGIC || version !== VERSION) throw unsound(file, `it is no GGUF of version ${VERSION}`);
  const tensors = reader.u64(), entries = reader.u64();
  let alignment = ALIGNMENT;
  for (let i = 0; i < entries; i++) {
    const key = reader.text(), type = reader.u32();
    if (key === ALIGNMENT_KEY && type === VALUE.u32) alignment = reader.u32();
    else reader.skip(type);
  }
  const found = new Map<string, { dimensions: number[]; type: number; offset: number }>();
  for (let i = 0; i < tensors; i++) {
    const name = reader.text(), dimensions = [];
    for (let left = reader.u32(); left > 0; left--) dimensions.push(reader.u64());
    found.set(name, { dimensions, type: reader.u32(), offset: reader.u64() });
  }
  const start = aligned(reader.at, alignment);
  return new Map([...found].map(([name, { dimensions, type, offset }]) => {
    const data = (length: number) => {
      const end = start + offset + length;
      if (end > bytes.length) throw unsound(file, `${name} ends at byte ${end} of ${bytes.length}`);
      return bytes.subarray(end - length, end);
    };
    return [name, { dimensions, type, data }];
  }));
}

function unsound(file: string, what: string): HcinferError {
  return new HcinferError("checkpoint", `${file} is not a sound GGUF file: ${what}`);
}

function aligned(bytes: number, alignment: number): number {
  return Math.ceil(bytes / alignment) * alignment;
}

/** What is written, piece by piece. */
class Bytes {
  readonly #parts: Uint8Array[] = [];
  #length = 0;

  raw(bytes: Uint8Array): this {
    this.#parts.push(bytes);
    this.#length += bytes.length;
    return this;
  }

  u32(value: number): this {
    return this.raw(new Uint8Array(Uint32Array.of(value).buffer));
  }

  u64(value: number): this {
    return this.raw(new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  }

  text(value: string): this {
    const bytes = new TextEncoder().encode(value);
    return this.u64(bytes.length).raw(bytes);
  }

  /** With its type before it. */
  value(value: MetadataValue): this {
    if ("u32" in value) return this.u32(VALUE.u32).u32(value.u32);
    if ("f32" in value) {
      return this.u32(VALUE.f32).raw(new Uint8Array(Float32Array.of(value.f32).buffer));
    }
    if ("text" in value) return this.u32(VALUE.text).text(value.text);
    this.u32(VALUE.array);
    if ("i32s" in value) {
      return this.u32(VALUE.i32).u64(value.i32s.length).raw(new Uint8Array(value.i32s.buffer));
    }
    this.u32(VALUE.text).u64(value.texts.length);
    for (const text of value.texts) this.text(text);
    return this;
  }

  /** All of it, with zeros up to the alignment. */
  padded(): Uint8Array {
    const all = new Uint8Array(aligned(this.#length, ALIGNMENT));
    let at = 0;
    for (const part of this.#parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

/** Reads from the file's start on; throws at its end. */
class Reader {
  readonly #view: DataView;
  at = 0;

  constructor(readonly bytes: Uint8Array, readonly file: string) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  u64(): number {
    return Number(this.#view.getBigUint64(this.#take(8), true));
  }

  text(): string {
    const length = this.u64(), from = this.#take(length);
    return new TextDecoder().decode(this.bytes.subarray(from, from + length));
  }

  /** A metadata value of this type. */
  skip(type: number): void {
    const bytes = VALUE_BYTES[type];
    if (bytes !== undefined) this.#take(bytes);
    else if (type === VALUE.text) this.#take(this.u64());
    else if (type === VALUE.array) {
      const of = this.u32();
      for (let left = this.u64(); left > 0; left--) this.skip(of);
    } else throw unsound(this.file, `a metadata value is of the unknown type ${type}`);
  }

  #take(bytes: number): number {
    const from = this.at;
    if (from + bytes > this.bytes.length) throw unsound(this.file, `it ends at byte ${this.bytes.length}`);
    this.at += bytes;
    return from;
  }
}
