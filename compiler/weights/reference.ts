/**
 * The formats of format.ts in plain TypeScript and double precision: the oracle the native packer and the kernels
 * are tested against. Slow; the compiler itself packs with ffi/packing.ts.
 *
 * Matrices are [rows, inputs], row-major.
 */
import { bitsOf, hasZeroPoint, packedShape, ROW_BLOCK, type WeightFormat } from "./format.ts";
import { fromBF16, fromF16, roundF16, toBF16, toF16 } from "./half.ts";

/** Clip search: the range of a group is shrunk by 1.00, 0.98, ..., 0.54. */
const SHRINK_STEPS = 24;
const SHRINK_STEP = 0.02;

/** Packs a matrix, choosing the scales of each group for least squared error. Throws RangeError beyond f16. */
export function quantize(
  weights: Float64Array,
  format: WeightFormat,
  rows: number,
  inputs: number,
): Uint8Array {
  const shape = packedShape(format, rows, inputs);
  const packed = new Uint8Array(shape.bytes);
  const view = new DataView(packed.buffer);
  if (format.kind === "bf16") {
    forEachPair(rows, inputs, (row, input, offset) => {
      view.setUint16(offset, toBF16(weights[row * inputs + input] ?? 0), true);
    });
    return packed;
  }
  const bits = bitsOf(format);
  const codes = new Uint8Array(ROW_BLOCK * format.group);
  for (let block = 0; block < shape.rowBlocks; block++) {
    for (let group = 0; group < shape.groups; group++) {
      const tile = (block * shape.groups + group) * shape.tileBytes;
      for (let r = 0; r < ROW_BLOCK; r++) {
        const row = block * ROW_BLOCK + r;
        const first = group * format.group;
        const last = row < rows ? Math.min(inputs, first + format.group) : first;
        const fit = quantizeGroup(weights.subarray(row * inputs + first, row * inputs + last), bits);
        view.setUint16(tile + 2 * r, toF16(fit.scale), true);
        if (hasZeroPoint(format)) view.setUint16(tile + 2 * (ROW_BLOCK + r), toF16(fit.zero), true);
        for (let i = 0; i < format.group; i++) {
          codes[quadOrder(r, i)] = codeOf(last > first + i ? weights[row * inputs + first + i] ?? 0 : 0, fit);
        }
      }
      packed.set(packCodes(codes, bits), tile + shape.headerBytes);
    }
  }
  return packed;
}

/** The matrix a packed weight stands for, exactly. */
export function dequantize(
  packed: Uint8Array,
  format: WeightFormat,
  rows: number,
  inputs: number,
): Float64Array {
  const shape = packedShape(format, rows, inputs);
  if (packed.length !== shape.bytes) {
    throw new RangeError(`a packed [${rows},${inputs}] has ${shape.bytes} bytes, found ${packed.length}`);
  }
  const view = new DataView(packed.buffer, packed.byteOffset, packed.byteLength);
  const weights = new Float64Array(rows * inputs);
  if (format.kind === "bf16") {
    forEachPair(rows, inputs, (row, input, offset) => {
      weights[row * inputs + input] = fromBF16(view.getUint16(offset, true));
    });
    return weights;
  }
  const bits = bitsOf(format);
  for (let block = 0; block < shape.rowBlocks; block++) {
    for (let group = 0; group < shape.groups; group++) {
      const tile = (block * shape.groups + group) * shape.tileBytes;
      const codes = unpackCodes(packed.subarray(tile + shape.headerBytes, tile + shape.tileBytes), bits);
      for (let r = 0; r < ROW_BLOCK && block * ROW_BLOCK + r < rows; r++) {
        const scale = fromF16(view.getUint16(tile + 2 * r, true));
        const zero = hasZeroPoint(format)
          ? fromF16(view.getUint16(tile + 2 * (ROW_BLOCK + r), true))
          : Q8_ZERO;
        const first = group * format.group;
        for (let i = 0; i < format.group && first + i < inputs; i++) {
          weights[(block * ROW_BLOCK + r) * inputs + first + i] = scale *
            ((codes[quadOrder(r, i)] ?? 0) - zero);
        }
      }
    }
  }
  return weights;
}

const Q8_ZERO = 128;

/** Scale and zero point of a group, both values of f16, and the codes it may use. */
export interface GroupFit {
  readonly scale: number;
  readonly zero: number;
  readonly least: number;
  readonly most: number;
}

function codeOf(weight: number, { scale, zero, least, most }: GroupFit): number {
  const code = scale === 0 ? Math.round(zero) : Math.round(weight / scale + zero);
  return Math.min(most, Math.max(least, code));
}

function errorOf(weights: Float64Array, fit: GroupFit): number {
  let error = 0;
  for (const w of weights) error += (w - fit.scale * (codeOf(w, fit) - fit.zero)) ** 2;
  return error;
}

/**
 * Scale and zero point of one row's group. 24 shrunk ranges are tried; the least squared error wins, the first among
 * equals; then the least-squares scale for the winner's codes, kept when it is better still.
 *
 * Ranges reach to zero and zero points are integers, so that 0 is a code exactly. Channels whose activations are
 * outliers have small weights: where those may round away from 0, a model with outliers loses twice as much
 * (SmolLM2 at 3 bits: KL 2.1 against 1.2), although the squared error of all weights is a little less.
 *
 * Throws RangeError when the scale leaves the range of f16.
 */
export function quantizeGroup(weights: Float64Array, bits: number): GroupFit {
  const symmetric = bits === 8;
  const [least, most] = symmetric ? [1, 255] : [0, 2 ** bits - 1];
  const low = weights.reduce((a, b) => Math.min(a, b), 0);
  const high = weights.reduce((a, b) => Math.max(a, b), 0);
  let best: GroupFit = { scale: 0, zero: symmetric ? Q8_ZERO : 0, least, most };
  let bestError = errorOf(weights, best);
  if (bestError === 0) return best;
  const attempt = (scale: number, zero: number) => {
    const fit = { scale: roundF16(scale), zero, least, most };
    if (!(fit.scale > 0)) return;
    const error = errorOf(weights, fit);
    if (error < bestError) [best, bestError] = [fit, error];
  };
  const full = symmetric ? Math.max(high, -low) / 127 : (high - low) / most;
  if (!Number.isFinite(roundF16(full))) {
    throw new RangeError(`weights of ${low} to ${high} leave the range of f16 scales`);
  }
  for (let step = 0; step < SHRINK_STEPS; step++) {
    const scale = roundF16((1 - SHRINK_STEP * step) * full);
    const zero = Math.round(-low * (1 - SHRINK_STEP * step) / scale);
    attempt(scale, symmetric ? Q8_ZERO : Math.min(most, zero) + 0); // + 0: no -0
  }
  attempt(leastSquaresScale(weights, best), best.zero);
  return best;
}

/** The scale of least squared error for a fit's codes: sum(w d) / sum(d d), d = code - zero. 0 when there is none. */
function leastSquaresScale(weights: Float64Array, fit: GroupFit): number {
  let dd = 0, dw = 0;
  for (const w of weights) {
    const d = codeOf(w, fit) - fit.zero;
    dd += d * d;
    dw += d * w;
  }
  return dd === 0 ? 0 : dw / dd;
}

/** Where the code of (row, input) of a tile is in quad order. */
function quadOrder(row: number, input: number): number {
  return (input >> 2) * 64 + 4 * row + (input & 3);
}

/** The bits of a code, lowest first, as pieces: [byte in the tile's codes, shift, mask]. */
function piecesOf(at: number, bits: number, codes: number): readonly (readonly [number, number, number])[] {
  const quad = at >> 6;
  const byte = at & 63;
  switch (bits) {
    case 8:
      return [[at, 0, 255]];
    case 4:
      return [[(quad >> 1) * 64 + byte, 4 * (quad & 1), 15]];
    case 2:
      return [[(quad >> 2) * 64 + byte, 2 * (quad & 3), 3]];
    case 3:
      return [
        [(quad >> 2) * 64 + byte, 2 * (quad & 3), 3],
        [codes / 4 + (quad >> 3) * 64 + byte, quad & 7, 1],
      ];
    default:
      throw new RangeError(`no codes of ${bits} bits`);
  }
}

/** Codes of one tile in quad order -> its code bytes. */
export function packCodes(codes: Uint8Array, bits: number): Uint8Array {
  const packed = new Uint8Array(codes.length * bits / 8);
  for (let at = 0; at < codes.length; at++) {
    let code = codes[at] ?? 0;
    for (const [byte, shift, mask] of piecesOf(at, bits, codes.length)) {
      packed[byte] = (packed[byte] ?? 0) | (code & mask) << shift;
      code >>= mask === 3 ? 2 : 8;
    }
  }
  return packed;
}

/** Code bytes of one tile -> codes in quad order. */
export function unpackCodes(packed: Uint8Array, bits: number): Uint8Array {
  const codes = new Uint8Array(packed.length * 8 / bits);
  for (let at = 0; at < codes.length; at++) {
    let low = 0;
    let code = 0;
    for (const [byte, shift, mask] of piecesOf(at, bits, codes.length)) {
      code |= ((packed[byte] ?? 0) >> shift & mask) << low;
      low += 2;
    }
    codes[at] = code;
  }
  return codes;
}

/** Calls with the offset of every (row, input) of a packed bf16 matrix: pairs of inputs, 16 rows beside each other. */
function forEachPair(
  rows: number,
  inputs: number,
  visit: (row: number, input: number, offset: number) => void,
): void {
  const { groups, tileBytes } = packedShape({ kind: "bf16" }, rows, inputs);
  for (let row = 0; row < rows; row++) {
    for (let input = 0; input < inputs; input++) {
      const tile = (Math.floor(row / ROW_BLOCK) * groups + (input >> 1)) * tileBytes;
      visit(row, input, tile + (row % ROW_BLOCK) * 4 + (input & 1) * 2);
    }
  }
}
