/**
 * Weight formats and their packed layouts, bit by bit. This file is the one description: the plain-TypeScript
 * oracle (reference.ts), the native packer (ffi/simd/quantize.cpp) and the kernels (ffi/simd/unpack.h) follow it;
 * tests/fixtures/formats.ts holds bytes worked out by hand, which tests of each side compare with. How scales are chosen is
 * said at `quantizeGroup` in reference.ts.
 *
 * A matrix W is [outputs, inputs] as in a checkpoint; y = x W^T. Rows (outputs) go in blocks of 16, inputs in
 * groups of `group`. Rows are padded with zero rows to a multiple of 16 and inputs with zero columns to a
 * multiple of `group` (bf16: of 2). A packed matrix is, for each row block, for each group, one tile:
 *
 *   q8  scale   16 x f16 (32 bytes)                       W = scale * (code - 128), code in 1..255
 *       codes   16 * group bytes
 *   q4  scale   16 x f16, zero 16 x f16 (64 bytes)        W = scale * (code - zero)
 *   q3  codes   16 * group * bits / 8 bytes
 *   q2
 *   bf16        for each pair of inputs, 16 x (even, odd) bf16: no scales
 *
 * Code bytes are in "quads": quad q holds inputs 4q..4q+3 of all 16 rows, byte 4 * row + (input mod 4), the
 * operand order of an 8-bit dot-product instruction (64 bytes a quad, group / 4 quads a tile).
 *   q8: the quads, one after another.
 *   q4: 64 bytes for every 2 quads: the low nibble of byte b is byte b of quad 2i, the high nibble of quad 2i+1.
 *   q2: 64 bytes for every 4 quads: bits 2n..2n+1 of byte b are byte b of quad 4i+n.
 *   q3: first the low two bits of all quads as in q2 (4 * group bytes), then the third bits: 64 bytes for every
 *       8 quads, bit n of byte b is the third bit of byte b of quad 8i+n. With group 32 (8 quads) that is one
 *       such vector; groups are multiples of 32, so every plane is whole.
 * f16 and bf16 are little-endian. Codes of padding inputs are whatever encodes nearest to zero; kernels multiply
 * them with activations that are exactly zero.
 */

export const ROW_BLOCK = 16;

export type FormatKind = "bf16" | "q8" | "q4" | "q3" | "q2";
export const FORMAT_KINDS: readonly FormatKind[] = ["bf16", "q8", "q4", "q3", "q2"];
export const GROUP_SIZES = [32, 64, 128] as const;
export type GroupSize = typeof GROUP_SIZES[number];

/** A weight's format: bf16, or quantised codes with a scale (and a zero point below 8 bits) per group. */
export type WeightFormat =
  | { readonly kind: "bf16" }
  | { readonly kind: Exclude<FormatKind, "bf16">; readonly group: GroupSize };

const BITS = { bf16: 16, q8: 8, q4: 4, q3: 3, q2: 2 } as const satisfies Record<FormatKind, number>;

export function bitsOf(format: WeightFormat): number {
  return BITS[format.kind];
}

/** Only q8 is symmetric: its zero point is 128 and not stored. */
export function hasZeroPoint(format: WeightFormat): boolean {
  return format.kind === "q4" || format.kind === "q3" || format.kind === "q2";
}

/** bf16 has no groups. */
export function formatFor(kind: FormatKind, group: GroupSize): WeightFormat {
  return kind === "bf16" ? { kind } : { kind, group };
}

/** `q4g64`, `bf16`: the notation of the graph's text and of weight tables. */
export function formatText(format: WeightFormat): string {
  return format.kind === "bf16" ? "bf16" : `${format.kind}g${format.group}`;
}

/** Reads `q4g64` or `bf16`; undefined when it is neither. */
export function parseFormat(text: string): WeightFormat | undefined {
  if (text === "bf16") return { kind: "bf16" };
  const match = /^(q8|q4|q3|q2)g(32|64|128)$/.exec(text);
  if (!match) return undefined;
  return { kind: match[1] as "q8" | "q4" | "q3" | "q2", group: Number(match[2]) as GroupSize };
}

/** Sizes of one packed matrix, all in bytes unless named otherwise. */
export interface PackedShape {
  readonly rows: number;
  readonly inputs: number;
  readonly rowBlocks: number;
  /** Groups per row (bf16: pairs of inputs). */
  readonly groups: number;
  readonly paddedInputs: number;
  /** Bytes of scales and zero points at the start of a tile. */
  readonly headerBytes: number;
  readonly codeBytes: number;
  readonly tileBytes: number;
  readonly bytes: number;
}

export function packedShape(format: WeightFormat, rows: number, inputs: number): PackedShape {
  const group = format.kind === "bf16" ? 2 : format.group;
  const rowBlocks = Math.ceil(rows / ROW_BLOCK);
  const groups = Math.ceil(inputs / group);
  const headerBytes = format.kind === "bf16" ? 0 : ROW_BLOCK * 2 * (hasZeroPoint(format) ? 2 : 1);
  const codeBytes = ROW_BLOCK * group * bitsOf(format) / 8;
  const tileBytes = headerBytes + codeBytes;
  return {
    rows,
    inputs,
    rowBlocks,
    groups,
    paddedInputs: groups * group,
    headerBytes,
    codeBytes,
    tileBytes,
    bytes: rowBlocks * groups * tileBytes,
  };
}
