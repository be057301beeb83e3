/**
 * ggml's block formats (github.com/ggml-org/ggml, src/ggml-common.h: block_q4_0 and following) of the matrices that llama.cpp
 * makes here, read back to numbers. A matrix is its rows one after the other, a row its blocks. All products are exact in f32:
 * an f16 scale times integers of at most 12 bits; a sum of two is rounded once, as in ggml.
 */
import { fromF16 } from "../../compiler/weights/half.ts";

export interface BlockFormat {
  /** ggml's number of the type, as files have it. */
  readonly id: number;
  /** Weights of a block, consecutive inputs of a row. */
  readonly weights: number;
  readonly bytes: number;
  /** Numbers of the block that starts at byte `at` of `blocks`, to `out` from element `to`. */
  readonly decode: (blocks: Uint8Array, at: number, out: Float32Array, to: number) => void;
}

/** Numbers of the types that files hold unquantised. */
export const PLAIN_IDS = { F32: 0, F16: 1, BF16: 30 } as const;

export const BLOCK_FORMATS = {
  /** d f16, codes u4[32]: d (code - 8). */
  Q4_0: {
    id: 2,
    weights: 32,
    bytes: 18,
    decode(blocks, at, out, to) {
      const d = half(blocks, at);
      for (let i = 0; i < 32; i++) out[to + i] = d * (nibble(blocks, at + 2, i) - 8);
    },
  },
  /** d f16, fifth bits u1[32], codes u4[32]: d (code - 16). */
  Q5_0: {
    id: 6,
    weights: 32,
    bytes: 22,
    decode(blocks, at, out, to) {
      const d = half(blocks, at);
      for (let i = 0; i < 32; i++) {
        const code = nibble(blocks, at + 6, i) | bit(blocks, at + 2, i) << 4;
        out[to + i] = d * (code - 16);
      }
    },
  },
  /** d f16, m f16, fifth bits u1[32], codes u4[32]: d code + m. */
  Q5_1: {
    id: 7,
    weights: 32,
    bytes: 24,
    decode(blocks, at, out, to) {
      const d = half(blocks, at), m = half(blocks, at + 2);
      for (let i = 0; i < 32; i++) {
        const code = nibble(blocks, at + 8, i) | bit(blocks, at + 4, i) << 4;
        out[to + i] = d * code + m;
      }
    },
  },
  /**
   * Third bits u1[256], codes u2[256], scales u6[16], d f16: d (scale - 32) (code - 4) in subgroups of 16. Of a scale, four
   * bits lie in bytes 0 to 7, two in bytes 8 to 11.
   */
  Q3_K: {
    id: 11,
    weights: 256,
    bytes: 110,
    decode(blocks, at, out, to) {
      const d = half(blocks, at + 108), scales = at + 96;
      for (let group = 0; group < 16; group++) {
        const low = nibbleOf(blocks[scales + group % 8]!, group >> 3);
        const high = blocks[scales + 8 + group % 4]! >> 2 * (group >> 2) & 3;
        const scale = d * ((low | high << 4) - 32);
        for (let i = 16 * group; i < 16 * (group + 1); i++) {
          const code = blocks[at + 32 + 32 * (i >> 7) + i % 32]! >> 2 * (i >> 5 & 3) & 3;
          const third = blocks[at + i % 32]! >> (i >> 5) & 1;
          out[to + i] = scale * ((code | third << 2) - 4);
        }
      }
    },
  },
  /** d f16, m f16, scales and minima u6[8] each, codes u4[256]: d scale code - m minimum in subgroups of 32. */
  Q4_K: {
    id: 12,
    weights: 256,
    bytes: 144,
    decode(blocks, at, out, to) {
      decodeWithMinima(blocks, at, out, to, (i) => nibbleOf(blocks[at + 16 + pairedByte(i)]!, i >> 5 & 1));
    },
  },
  /** As Q4_K, with fifth bits u1[256] before the codes. */
  Q5_K: {
    id: 13,
    weights: 256,
    bytes: 176,
    decode(blocks, at, out, to) {
      decodeWithMinima(blocks, at, out, to, (i) => {
        const fifth = blocks[at + 16 + i % 32]! >> (i >> 5) & 1;
        return nibbleOf(blocks[at + 48 + pairedByte(i)]!, i >> 5 & 1) | fifth << 4;
      });
    },
  },
} as const satisfies Readonly<Record<string, BlockFormat>>;

export type BlockFormatName = keyof typeof BLOCK_FORMATS;

/** The format of this number; undefined for those that are not read. */
export function blockFormatOf(id: number): BlockFormatName | undefined {
  return (Object.keys(BLOCK_FORMATS) as BlockFormatName[]).find((name) => BLOCK_FORMATS[name].id === id);
}

/** Numbers of whole blocks. */
export function decodeBlocks(name: BlockFormatName, blocks: Uint8Array): Float32Array<ArrayBuffer> {
  const { weights, bytes, decode } = BLOCK_FORMATS[name];
  const count = blocks.length / bytes;
  const out = new Float32Array(count * weights);
  for (let block = 0; block < count; block++) decode(blocks, block * bytes, out, block * weights);
  return out;
}

/** Of Q4_K and Q5_K; the six bits of subgroups 4 to 7 lie in two places. */
function decodeWithMinima(
  blocks: Uint8Array,
  at: number,
  out: Float32Array,
  to: number,
  code: (i: number) => number,
): void {
  const d = half(blocks, at), m = half(blocks, at + 2);
  for (let group = 0; group < 8; group++) {
    const [first, second, third] = [0, 4, 8].map((i) => blocks[at + 4 + i + group % 4]!) as [
      number,
      number,
      number,
    ];
    const scale = d * (group < 4 ? first & 63 : third & 15 | first >> 6 << 4);
    const minimum = m * (group < 4 ? second & 63 : third >> 4 | second >> 6 << 4);
    for (let i = 32 * group; i < 32 * (group + 1); i++) out[to + i] = scale * code(i) - minimum;
  }
}

/** Which byte holds the code of weight i where 64 weights share 32 bytes, the first 32 in the low halves. */
function pairedByte(i: number): number {
  return 32 * (i >> 6) + i % 32;
}

/** Code i of 32 in 16 bytes: the first 16 in the low halves. */
function nibble(bytes: Uint8Array, at: number, i: number): number {
  return nibbleOf(bytes[at + i % 16]!, i >> 4);
}

function nibbleOf(byte: number, isHigh: number): number {
  return byte >> 4 * isHigh & 15;
}

function bit(bytes: Uint8Array, at: number, i: number): number {
  return bytes[at + (i >> 3)]! >> i % 8 & 1;
}

function half(bytes: Uint8Array, at: number): number {
  return fromF16(bytes[at]! | bytes[at + 1]! << 8);
}
