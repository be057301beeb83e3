/**
 * The stored forms of a window's corrections (correction.ts) in plain TypeScript and double precision: the oracle for
 * the native packer and kernels.
 */
import { type FactorDType, factorStride, residualShape, type ResidualWidth } from "./correction.ts";
import { fromBF16 } from "./half.ts";

/** A stored sparse residual, as its tensors hold it. */
export interface StoredResidual {
  readonly codes: Uint8Array;
  readonly outputScale: Float32Array;
  readonly channelScale: Float32Array;
  readonly norm: Float32Array;
}

/** Stored factors, as their tensors hold them; `a` and `b` are bytes of i8 or little-endian bf16. */
export interface StoredFactors {
  readonly a: Uint8Array;
  readonly b: Uint8Array;
  readonly aScale: Float32Array;
  readonly bScale: Float32Array;
}

/** The 16-bit word a code lies in, counted from the start of its row, and its lowest bit. */
function placeOf(output: number, width: ResidualWidth, codesPerWord: number): [number, number] {
  const perBlock = 16 * codesPerWord;
  const within = output % perBlock;
  return [Math.floor(output / perBlock) * 16 + within % 16, Math.floor(within / 16) * width];
}

/** Bytes of one channel's row; unused bits and padding outputs hold the code of zero. */
export function packResidualRow(codes: Uint8Array, width: ResidualWidth): Uint8Array {
  const { codesPerWord, blocks, blockOutputs, rowBytes } = residualShape(width, codes.length);
  const words = new Uint16Array(rowBytes / 2);
  for (let output = 0; output < blocks * blockOutputs; output++) {
    const [word, shift] = placeOf(output, width, codesPerWord);
    words[word] = (words[word] ?? 0) | (codes[output] ?? 2 ** (width - 1)) << shift;
  }
  const bytes = new Uint8Array(rowBytes);
  const view = new DataView(bytes.buffer);
  words.forEach((word, i) => view.setUint16(2 * i, word, true));
  return bytes;
}

/** Codes of one channel's row. */
export function unpackResidualRow(row: Uint8Array, width: ResidualWidth, outputs: number): Uint8Array {
  const { codesPerWord } = residualShape(width, outputs);
  const view = new DataView(row.buffer, row.byteOffset, row.byteLength);
  return Uint8Array.from({ length: outputs }, (_, output) => {
    const [word, shift] = placeOf(output, width, codesPerWord);
    return view.getUint16(2 * word, true) >> shift & (2 ** width - 1);
  });
}

/** The E [outputs, inputs] that a stored residual stands for. */
export function decodeResidual(
  stored: StoredResidual,
  width: ResidualWidth,
  outputs: number,
  inputs: number,
): Float64Array {
  const { rowBytes } = residualShape(width, outputs);
  const error = new Float64Array(outputs * inputs);
  for (let j = 0; j < inputs; j++) {
    const codes = unpackResidualRow(stored.codes.subarray(j * rowBytes, (j + 1) * rowBytes), width, outputs);
    codes.forEach((code, o) => {
      const scale = (stored.outputScale[o] ?? 0) * (stored.channelScale[j] ?? 0);
      error[o * inputs + j] = scale * (code - 2 ** (width - 1));
    });
  }
  return error;
}

/**
 * Stores E [outputs, inputs] with a scale per output (the root mean square of its row of E, refitted once) times a
 * scale per channel (least squared error over shrunk ranges).
 */
export function encodeResidual(
  error: Float64Array,
  outputs: number,
  inputs: number,
  width: ResidualWidth,
): StoredResidual {
  const { rowBytes } = residualShape(width, outputs);
  const most = 2 ** (width - 1) - 1;
  const at = (o: number, j: number) => error[o * inputs + j] ?? 0;
  const outputScale = Float32Array.from({ length: outputs }, (_, o) => {
    let energy = 0;
    for (let j = 0; j < inputs; j++) energy += at(o, j) ** 2;
    return Math.sqrt(energy / inputs);
  });
  const channelScale = new Float32Array(inputs);
  const norm = new Float32Array(inputs);
  const codes = new Int8Array(outputs * inputs);
  const encode = (j: number, scale: number): number => {
    let lost = 0;
    for (let o = 0; o < outputs; o++) {
      const unit = scale * (outputScale[o] ?? 0);
      const code = unit === 0 ? 0 : Math.min(most, Math.max(-most, Math.round(at(o, j) / unit)));
      codes[o * inputs + j] = code;
      lost += (at(o, j) - code * unit) ** 2;
    }
    return lost;
  };
  for (let j = 0; j < inputs; j++) {
    let range = 0;
    let energy = 0;
    for (let o = 0; o < outputs; o++) {
      const scale = outputScale[o] ?? 0;
      if (scale > 0) range = Math.max(range, Math.abs(at(o, j)) / scale);
      energy += at(o, j) ** 2;
    }
    norm[j] = Math.sqrt(energy);
    let least = Infinity;
    for (let step = 0; step < 40; step++) {
      const scale = Math.fround(range * (1 - 0.02 * step) / most);
      const lost = encode(j, scale);
      if (lost < least) [least, channelScale[j]] = [lost, scale];
    }
    encode(j, channelScale[j] ?? 0);
  }
  for (let o = 0; o < outputs; o++) {
    let product = 0;
    let square = 0;
    for (let j = 0; j < inputs; j++) {
      const unit = (channelScale[j] ?? 0) * (codes[o * inputs + j] ?? 0);
      product += unit * at(o, j);
      square += unit * unit;
    }
    if (square > 0) outputScale[o] = product / square;
  }
  const packed = new Uint8Array(inputs * rowBytes);
  for (let j = 0; j < inputs; j++) {
    const row = Uint8Array.from({ length: outputs }, (_, o) => (codes[o * inputs + j] ?? 0) + most + 1);
    packed.set(packResidualRow(row, width), j * rowBytes);
  }
  return { codes: packed, outputScale, channelScale, norm };
}

/** The matrix [outputs, inputs] that the first `rank` components stand for: (A B)^T. */
export function decodeFactors(
  stored: StoredFactors,
  dtype: FactorDType,
  outputs: number,
  inputs: number,
  rank: number,
): Float64Array {
  const element = (bytes: Uint8Array, length: number) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const stride = factorStride(length);
    return (component: number, i: number) =>
      dtype === "i8"
        ? view.getInt8(component * stride + i)
        : fromBF16(view.getUint16(2 * (component * stride + i), true));
  };
  const a = element(stored.a, inputs);
  const b = element(stored.b, outputs);
  const error = new Float64Array(outputs * inputs);
  for (let c = 0; c < rank; c++) {
    const scale = (stored.aScale[c] ?? 0) * (stored.bScale[c] ?? 0);
    for (let o = 0; o < outputs; o++) {
      const right = scale * b(c, o);
      for (let j = 0; j < inputs; j++) {
        error[o * inputs + j] = (error[o * inputs + j] ?? 0) + right * a(c, j);
      }
    }
  }
  return error;
}
