/**
 * The safetensors format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON
 * header, then the tensors' bytes without holes. The reader works on the bytes of a mapped file and copies nothing
 * but the header; every number of the header is checked against the file before it is used.
 */
import { z } from "zod";
import { HcinferError } from "../errors.ts";
import { faultsText, parseJson } from "../json.ts";

/** Bytes of an element of each data type of the format that is a whole number of bytes. */
export const DTYPE_BYTES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
  C64: 8,
} as const;
export type TensorDType = keyof typeof DTYPE_BYTES;

export interface TensorView {
  readonly dtype: TensorDType;
  readonly shape: readonly number[];
  /** A view of the file's bytes. */
  readonly bytes: Uint8Array;
}

export interface Safetensors {
  readonly tensors: ReadonlyMap<string, TensorView>;
  readonly metadata: ReadonlyMap<string, string>;
}

/** As the reference implementation has it: a larger header is a lie or a mistake. */
const MOST_HEADER_BYTES = 100_000_000;
const PREFIX_BYTES = 8;

const Entry = z.strictObject({
  dtype: z.string(),
  shape: z.array(z.int().nonnegative()).max(16),
  data_offsets: z.tuple([z.int().nonnegative(), z.int().nonnegative()]),
});
const Metadata = z.record(z.string(), z.string());

/**
 * Reads the header of a safetensors file. `file` is its name for messages.
 *
 * Throws HcinferError(kind) when the header is cut off, is not JSON, or says what the file does not hold: unknown
 * dtypes, shapes that do not match their bytes, offsets outside the file, overlaps or holes.
 */
export function readSafetensors(
  bytes: Uint8Array,
  file: string,
  kind: "checkpoint" | "bundle" = "checkpoint",
): Safetensors {
  const fail = (what: string): never => {
    throw new HcinferError(kind, `${file} is not a sound safetensors file: ${what}`);
  };
  if (bytes.length < PREFIX_BYTES) fail(`it has ${bytes.length} bytes, a header length alone takes 8`);
  const length = new DataView(bytes.buffer, bytes.byteOffset, PREFIX_BYTES).getBigUint64(0, true);
  const room = Math.min(bytes.length - PREFIX_BYTES, MOST_HEADER_BYTES);
  if (length > BigInt(room)) {
    fail(`it announces a header of ${length} bytes, at most ${room} fit (is the file cut off?)`);
  }
  const dataStart = PREFIX_BYTES + Number(length);
  const header = parseHeader(bytes.subarray(PREFIX_BYTES, dataStart), fail);
  // Plain views: those of a Node Buffer would be Buffers, whose slice() copies nothing.
  const data = new Uint8Array(bytes.buffer, bytes.byteOffset + dataStart, bytes.length - dataStart);

  const tensors = new Map<string, TensorView>();
  const ranges: { name: string; begin: number; end: number }[] = [];
  let metadata = new Map<string, string>();
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") {
      const parsed = Metadata.safeParse(value);
      if (!parsed.success) fail("__metadata__ is not a map of strings");
      metadata = new Map(Object.entries(parsed.data ?? {}));
      continue;
    }
    const parsed = Entry.safeParse(value);
    if (!parsed.success) return fail(`tensor ${quote(name)}: ${faultsText(parsed.error)}`);
    const { dtype, shape, data_offsets: [begin, end] } = parsed.data;
    if (!isDType(dtype)) return fail(`tensor ${quote(name)} has the unknown dtype ${quote(dtype)}`);
    const expected = shape.reduce((n, d) => n * d, DTYPE_BYTES[dtype]);
    if (end < begin || end - begin !== expected) {
      fail(
        `tensor ${quote(name)}, ${dtype} [${shape}], needs ${expected} bytes but lies at ${begin}..${end}`,
      );
    }
    if (end > data.length) {
      fail(
        `tensor ${quote(name)} ends at byte ${end} of ${data.length} bytes of data (is the file cut off?)`,
      );
    }
    ranges.push({ name, begin, end });
    tensors.set(name, { dtype, shape, bytes: data.subarray(begin, end) });
  }

  let at = 0;
  ranges.sort((a, b) => a.begin - b.begin || a.end - b.end);
  for (const { name, begin, end } of ranges) {
    if (begin < at) fail(`tensor ${quote(name)} overlaps the one before it`);
    if (begin > at) fail(`bytes ${at}..${begin} before tensor ${quote(name)} belong to no tensor`);
    at = end;
  }
  if (at !== data.length) fail(`${data.length - at} bytes after the last tensor belong to no tensor`);
  return { tensors, metadata };
}

export interface TensorSpec {
  readonly name: string;
  readonly dtype: TensorDType;
  readonly shape: readonly number[];
}

export interface SafetensorsLayout {
  /** Length prefix and header, a multiple of the alignment: what the file starts with. */
  readonly header: Uint8Array;
  /** Where each tensor starts, in bytes from the start of the file, and its length. */
  readonly ranges: ReadonlyMap<string, { readonly offset: number; readonly bytes: number }>;
  readonly fileBytes: number;
}

/**
 * Lays tensors out in the order given, each at a multiple of `alignment` bytes of the file. The format knows no
 * holes: the bytes between tensors are `__padding.N` tensors, U8, zero. After the last there are none. The header takes
 * at least `headerBytes`.
 */
export function layoutSafetensors(
  specs: readonly TensorSpec[],
  metadata: Readonly<Record<string, string>> = {},
  alignment = 64,
  headerBytes = 0,
): SafetensorsLayout {
  const entries: Record<string, unknown> = { __metadata__: metadata };
  const relative: { name: string; begin: number; bytes: number }[] = [];
  let at = 0;
  let fillers = 0;
  for (const { name, dtype, shape } of specs) {
    if (Object.hasOwn(entries, name)) throw new Error(`tensor ${name} is laid out twice`);
    const bytes = shape.reduce((n, d) => n * d, DTYPE_BYTES[dtype]);
    const fill = Math.ceil(at / alignment) * alignment - at;
    if (fill > 0) {
      entries[`__padding.${fillers++}`] = { dtype: "U8", shape: [fill], data_offsets: [at, at + fill] };
      at += fill;
    }
    entries[name] = { dtype, shape, data_offsets: [at, at + bytes] };
    relative.push({ name, begin: at, bytes });
    at += bytes;
  }
  const json = new TextEncoder().encode(JSON.stringify(entries));
  const dataStart = Math.ceil(Math.max(headerBytes, PREFIX_BYTES + json.length) / alignment) * alignment;
  const header = new Uint8Array(dataStart).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(dataStart - PREFIX_BYTES), true);
  header.set(json, PREFIX_BYTES);
  return {
    header,
    ranges: new Map(relative.map(({ name, begin, bytes }) => [name, { offset: dataStart + begin, bytes }])),
    fileBytes: dataStart + at,
  };
}

function parseHeader(bytes: Uint8Array, fail: (what: string) => never): object {
  let header: unknown;
  try {
    header = parseJson(bytes);
  } catch (cause) {
    return fail(`its header cannot be read as JSON (${(cause as Error).message.slice(0, 200)})`);
  }
  if (typeof header !== "object" || header === null || Array.isArray(header)) {
    return fail("its header is not a JSON object");
  }
  return header;
}

function isDType(name: string): name is TensorDType {
  return Object.hasOwn(DTYPE_BYTES, name);
}

function quote(name: string): string {
  return JSON.stringify(name.length > 200 ? `${name.slice(0, 200)}...` : name);
}
