/**
 * How a matrix becomes the codes of a format. Every quantiser packs the one layout of format.ts, so that kernels and
 * readers need not know which one packed; what it lost is measured from its packed bytes (window.ts).
 */
import {
  fitWeight,
  type PreparedMoments,
  prepareMoments,
  SWEEPS,
  WEIGHT_DAMPING,
} from "../../ffi/fitting.ts";
import { quantize, type Quantized } from "../../ffi/packing.ts";
import { HcinferError } from "../errors.ts";
import type { WeightFormat } from "./format.ts";
import { scaledMoments } from "./scaled_moments.ts";
import { valuesOf, type WeightTensor } from "./source.ts";

/**
 * Second moments of a window's inputs over a calibration, f32 [inputs, inputs] row-major: with c the part of x that rows
 * are chosen for and x' = x - c, kept E[x' x'^T], crossed [i][j] = E[x'_i c_j], chosen E[c c^T].
 */
export interface WindowMoments {
  readonly inputs: number;
  readonly kept: Float32Array;
  readonly crossed: Float32Array;
  readonly chosen: Float32Array;
}

export interface Quantizer {
  /** What it is and its parameters: recorded in the bundle. */
  readonly name: string;
  /**
   * The packer of one window's weights, W [outputs, inputs] each: they share their input, so what is made of its moments
   * is made once. The packer throws HcinferError("checkpoint") for weights that are not finite or too large for the format.
   *
   * @param moments where there was a calibration; a quantiser that needs them throws HcinferError("usage") without
   */
  window(moments?: WindowMoments): Packer;
  /** How it chooses scales to divide the channels of a window's input by, where these fold exactly; without: none. */
  readonly smoothing?: SmoothingRule;
}

/** @param scales [inputs]: the weight is W s already, and multiplies x / s; moments are those of x. Default: 1. */
export type Packer = (weight: WeightTensor, format: WeightFormat, scales?: Float32Array) => Quantized;

/** A channel of a window's input over a calibration: mean x_j^2, max |x_j|, and max |W_oj| over all outputs. */
export interface Channel {
  readonly square: number;
  readonly largest: number;
  readonly weight: number;
}

/** One strength alpha is chosen for every window (calibration/smooth.ts). */
export interface SmoothingRule {
  /** s_j, up to a factor common to all channels. */
  readonly scale: (channel: Channel, alpha: number) => number;
  /** The alphas that are tried, beside not to smooth. */
  readonly strengths: readonly number[];
  /** Outputs of a window that alpha is chosen by, evenly spread. */
  readonly outputs: number;
  /** H that errors e of the weights count under, as e H e^T. */
  readonly hessian: (moments: WindowMoments) => Float32Array;
  /** Whether the quantiser is nothing without it. */
  readonly isNeeded: boolean;
}

/** Of methods that are about smoothing. */
const SMOOTHED = {
  strengths: Array.from({ length: 11 }, (_, i) => i / 10),
  outputs: 512,
  hessian: allMoments,
  isNeeded: true,
} as const;

/** Every group by itself, for least squared error of the weights: see `quantize` of ffi/packing.ts. */
export function roundToNearest(threads: number): Quantizer {
  return {
    name: "round-to-nearest",
    window: () => ({ bytes, dtype, shape: [outputs = 0, inputs = 0] }, format) =>
      quantize(bytes, dtype, outputs, inputs, format, threads),
  };
}

/** E[x x^T], [inputs, inputs]: what the parts add up to. */
export function allMoments({ inputs, kept, crossed, chosen }: WindowMoments): Float32Array {
  const all = new Float32Array(inputs * inputs);
  for (let i = 0, at = 0; i < inputs; i++) {
    for (let j = 0; j < inputs; j++, at++) {
      all[at] = kept[at]! + crossed[at]! + crossed[j * inputs + i]! + chosen[at]!;
    }
  }
  return all;
}

/** How much of all moments the Hessian of `joint` has beside those that rows leave. */
const SHARE_OF_ALL = 0.03;

/**
 * GPTQ (arXiv 2210.17323) under the moments of the whole input: columns in the order of their activations, each rounding
 * error made up for by the columns after it. Scales are searched weighted by the moments' diagonal.
 */
export function gptq(threads: number): Quantizer {
  return fitting({ name: "gptq", hessian: allMoments, method: "gptq", sweeps: 0 }, threads);
}

/**
 * GPTQ under the moments of what rows leave uncorrected, then coordinate descent over scales and codes. Alone such a backbone
 * is poor: its rows belong to it. Inputs are smoothed where a few channels are so large that rounding to int8 would cost the
 * others of their group: on SmolLM2 in 4 bits that is a tenth of the KL.
 */
export function joint(threads: number): Quantizer {
  const hessian = (moments: WindowMoments) => {
    const all = allMoments(moments);
    return all.map((value, i) => moments.kept[i]! + SHARE_OF_ALL * value);
  };
  const smoothing: SmoothingRule = {
    scale: ({ largest }, alpha) => largest ** alpha,
    strengths: [0.15, 0.3, 0.45, 0.6, 0.75],
    outputs: 128,
    hessian,
    isNeeded: false,
  };
  return fitting({ name: "joint", hessian, method: "gptq", sweeps: SWEEPS, smoothing }, threads);
}

/**
 * AWQ (Lin et al. 2023, arXiv 2306.00978, section 3.2): channels with large inputs are scaled up before weights are rounded
 * to nearest, by a power alpha of their size that the error of the outputs chooses. Its clipping is the search for scales
 * of groups, weighted by the moments' diagonal. Size is the root mean square, where the paper has mean |x_j|.
 */
export function awq(threads: number): Quantizer {
  const smoothing: SmoothingRule = { ...SMOOTHED, scale: ({ square }, alpha) => Math.sqrt(square) ** alpha };
  return fitting({ name: "awq", hessian: allMoments, method: "rtn", sweeps: 0, smoothing }, threads);
}

/**
 * HAQ (Zhang et al. 2025, arXiv 2508.07329): smoothed activations, then weights quantised by the Hessian of these. Its full
 * text was not to be had, so what is here is inferred from its abstract: scales are SmoothQuant's (arXiv 2211.10438, eq. 4),
 * "adaptive" is a strength alpha chosen for every window by the error that rounding of weights and of activations leaves,
 * and the quantiser is GPTQ.
 */
export function haq(threads: number): Quantizer {
  const smoothing: SmoothingRule = {
    ...SMOOTHED,
    scale: ({ largest, weight }, alpha) => largest ** alpha / weight ** (1 - alpha),
  };
  return fitting({ name: "haq", hessian: allMoments, method: "gptq", sweeps: 0, smoothing }, threads);
}

interface Fitting {
  readonly name: string;
  /** What the quantiser minimises e H e^T under. */
  readonly hessian: (moments: WindowMoments) => Float32Array;
  readonly method: "rtn" | "gptq";
  readonly sweeps: number;
  readonly smoothing?: SmoothingRule;
}

function fitting({ name, hessian, method, sweeps, smoothing }: Fitting, threads: number): Quantizer {
  const steps = [
    name,
    ...(smoothing ? ["smoothed inputs"] : []),
    ...(method === "gptq" ? [`damping ${WEIGHT_DAMPING}`, `${sweeps} sweeps of coordinate descent`] : []),
  ];
  return {
    name: steps.join(", "),
    ...(smoothing ? { smoothing } : {}),
    window: (given) => {
      if (given === undefined) {
        throw new HcinferError(
          "usage",
          `the quantiser ${name} needs statistics: hcinfer calibrate writes them`,
        );
      }
      const prepared = prepareMoments(hessian(given), given.inputs, threads);
      let last: { scales: Float32Array; moments: PreparedMoments } | undefined; // sections of a window share them
      return (tensor, format, scales) => {
        if (format.kind === "bf16") {
          throw new HcinferError("usage", `bf16 is not quantised: ${name} has nothing to do`);
        }
        const [outputs = 0, inputs = 0] = tensor.shape;
        const weight = valuesOf(tensor);
        if (scales !== undefined && last?.scales !== scales) {
          last = { scales, moments: scaledMoments(prepared, scales) };
        }
        const moments = scales === undefined || last === undefined ? prepared : last.moments;
        const { packed, values } = fitWeight({
          weight,
          outputs,
          inputs,
          moments,
          format,
          method,
          sweeps,
          threads,
        });
        let energy = 0, errorEnergy = 0;
        for (let i = 0; i < weight.length; i++) {
          energy += weight[i]! ** 2;
          errorEnergy += (weight[i]! - values[i]!) ** 2;
        }
        return { packed, energy, errorEnergy };
      };
    },
  };
}

/** Quantisers by name. */
export const QUANTIZERS = { rtn: roundToNearest, gptq, joint, awq, haq } as const satisfies Record<
  string,
  (threads: number) => Quantizer
>;
export type QuantizerName = keyof typeof QUANTIZERS;
