/**
 * Packed bytes worked out by hand from format.ts, for the tests of every side that reads or writes them (this
 * folder's reference, the native packer, the kernels). Two rows of one group; every code is used; the scale is 1.
 */
import type { FormatKind, GroupSize, WeightFormat } from "./format.ts";

export interface Golden {
  readonly format: WeightFormat;
  readonly rows: number;
  readonly inputs: number;
  /** [rows, inputs]. */
  readonly weights: Float64Array;
  readonly packed: Uint8Array;
}

interface Pattern {
  readonly kind: Exclude<FormatKind, "bf16">;
  /** f16 bits, little-endian, of both rows' zero point; none for q8. */
  readonly zero: string | undefined;
  /** Weights of rows 0 and 1 at an input. */
  readonly weights: (input: number) => readonly [number, number];
  /**
   * The 64-byte vectors of a tile: bytes 0..3 (row 0) and 4..7 (row 1) as hex; the other 14 rows repeat `padding`.
   * A vector's first input decides which.
   */
  readonly planes: readonly { readonly inputs: number; readonly vectors: readonly string[] }[];
  readonly padding: number;
}

const PATTERNS: readonly Pattern[] = [
  {
    kind: "q8", // code i + 1 and 255 - i
    zero: undefined,
    weights: (i) => [i - 127, 127 - i],
    planes: [{
      inputs: 4,
      vectors: [
        "01020304 fffefdfc",
        "05060708 fbfaf9f8",
        "090a0b0c f7f6f5f4",
        "0d0e0f10 f3f2f1f0",
        "11121314 efeeedec",
        "15161718 ebeae9e8",
        "191a1b1c e7e6e5e4",
        "1d1e1f20 e3e2e1e0",
        "21222324 dfdedddc",
        "25262728 dbdad9d8",
        "292a2b2c d7d6d5d4",
        "2d2e2f30 d3d2d1d0",
        "31323334 cfcecdcc",
        "35363738 cbcac9c8",
        "393a3b3c c7c6c5c4",
        "3d3e3f40 c3c2c1c0",
      ],
    }],
    padding: 0x80,
  },
  {
    kind: "q4", // code i mod 16 and 15 - i mod 16, zero point 8
    zero: "0048",
    weights: (i) => [i % 16 - 8, 7 - i % 16],
    planes: [{ inputs: 8, vectors: ["40516273 bfae9d8c", "c8d9eafb 37261504"] }],
    padding: 0,
  },
  {
    kind: "q3", // code i mod 8 and (i / 4) mod 8, zero point 4
    zero: "0044",
    weights: (i) => [i % 8 - 4, (i >> 2) % 8 - 4],
    planes: [
      { inputs: 16, vectors: ["0055aaff e4e4e4e4"] },
      { inputs: 32, vectors: ["aaaaaaaa f0f0f0f0"] },
    ],
    padding: 0,
  },
  {
    kind: "q2", // code (i + i / 4) mod 4 and 3 minus that, zero points 1 and 2
    zero: "003c 0040",
    weights: (i) => [(i + (i >> 2)) % 4 - 1, 1 - (i + (i >> 2)) % 4],
    planes: [{ inputs: 16, vectors: ["e4394e93 1bc6b16c"] }],
    padding: 0,
  },
];

function hex(text: string): Uint8Array {
  const digits = text.replaceAll(" ", "");
  return Uint8Array.from(
    { length: digits.length / 2 },
    (_, i) => parseInt(digits.slice(2 * i, 2 * i + 2), 16),
  );
}

function golden(pattern: Pattern, group: GroupSize): Golden {
  const parts: Uint8Array[] = [];
  const header = (rows: string) => {
    const bytes = new Uint8Array(32);
    bytes.set(hex(rows));
    parts.push(bytes);
  };
  header("003c 003c"); // f16 1.0
  if (pattern.zero !== undefined) header(pattern.zero.length > 4 ? pattern.zero : pattern.zero.repeat(2));
  for (const { inputs, vectors } of pattern.planes) {
    for (let i = 0; i < group / inputs; i++) {
      const bytes = new Uint8Array(64).fill(pattern.padding);
      bytes.set(hex(vectors[i % vectors.length] ?? ""));
      parts.push(bytes);
    }
  }
  const weights = new Float64Array(2 * group);
  for (let i = 0; i < group; i++) [weights[i], weights[group + i]] = pattern.weights(i);
  return {
    format: { kind: pattern.kind, group },
    rows: 2,
    inputs: group,
    weights,
    packed: Uint8Array.from(parts.flatMap((p) => [...p])),
  };
}

function goldenBF16(): Golden {
  const packed = new Uint8Array(128);
  packed.set(hex("803f 00c0  003f 4040"), 0); // inputs 0 and 1: row 0 is 1, -2; row 1 is 0.5, 3
  packed.set(hex("80bf 0000  c042 0000"), 64); // input 2 and padding: row 0 is -1; row 1 is 96
  return {
    format: { kind: "bf16" },
    rows: 2,
    inputs: 3,
    weights: Float64Array.of(1, -2, -1, 0.5, 3, 96),
    packed,
  };
}

export const GOLDEN: readonly Golden[] = [
  goldenBF16(),
  ...PATTERNS.flatMap((pattern) => [golden(pattern, 32), golden(pattern, 64)]),
];
