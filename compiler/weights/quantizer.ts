/**
 * How a matrix becomes the codes of a format. Every quantiser packs the one layout of format.ts, so that kernels and
 * readers need not know which one packed; what it lost is measured from its packed bytes (window.ts).
 */
import { quantize, type Quantized } from "../../ffi/packing.ts";
import type { WeightFormat } from "./format.ts";
import type { WeightTensor } from "./source.ts";

/** Second moments E[x x^T] of a matrix's input from calibration: [inputs, inputs], row-major, symmetric. */
export interface InputMoments {
  readonly inputs: number;
  readonly values: Float32Array;
}

export interface Quantizer {
  /** What it is and its parameters: recorded in the bundle. */
  readonly name: string;
  /**
   * Packs W [outputs, inputs]; the energies are of what the packed bytes decode to. Throws HcinferError("checkpoint") for
   * weights that are not finite or too large for the format.
   *
   * @param moments where there was a calibration; a quantiser that needs them throws HcinferError("usage") without
   */
  quantize(weight: WeightTensor, format: WeightFormat, moments?: InputMoments): Quantized;
}

/** Every group by itself, for least squared error of the weights: see `quantize` of ffi/packing.ts. */
export function roundToNearest(threads: number): Quantizer {
  return {
    name: "round-to-nearest",
    quantize({ bytes, dtype, shape: [outputs = 0, inputs = 0] }, format) {
      return quantize(bytes, dtype, outputs, inputs, format, threads);
    },
  };
}
