/**
 * The scales that a window's input is divided by before it is quantised (weights/quantizer.ts says which quantiser has
 * what rule): s_j by a strength alpha, chosen for the smallest predicted loss that rounding leaves, of the weights under the
 * moments that the quantiser works on and of the activations, which kernels round to int8. Not to smooth is always among
 * the choices.
 */
import { remainingEnergy } from "../../ffi/fitting.ts";
import { errorOf } from "../../ffi/packing.ts";
import type { Matrix } from "../weights/inventory.ts";
import type { Channel, Packer, SmoothingRule, WindowMoments } from "../weights/quantizer.ts";
import { scaleMatrix } from "../weights/smoothed.ts";
import { matrixOf, tensorOf, valuesOf, type WeightSource } from "../weights/source.ts";
import type { Fold } from "./folds.ts";
import type { CalibratedWindow } from "./statistics.ts";

/** Scales are within this factor of their geometric mean: codes of a quiet channel keep some bits for texts unlike the calibration's. */
const MOST_SCALE = 256;

export interface SmoothOptions {
  /** With its format. */
  readonly matrix: Matrix;
  readonly source: WeightSource;
  readonly moments: WindowMoments;
  readonly measured: CalibratedWindow;
  /** Inputs of some tokens, [tokens, inputs]. */
  readonly sample: Float32Array;
  readonly fold: Fold;
  readonly rule: SmoothingRule;
  /** Of these moments. */
  readonly pack: Packer;
  readonly threads: number;
}

export interface Smoothing {
  /** s [inputs]; of fold's elements; both positive. Undefined: all 1, nothing is better. */
  readonly scales: { readonly inputs: Float32Array; readonly elements: Float32Array } | undefined;
  /** Of the scales; undefined with them. */
  readonly alpha: number | undefined;
  /** Predicted loss, of the outputs looked at, with these scales and without any. */
  readonly loss: number;
  readonly unsmoothed: number;
}

/** Chooses a window's scales. Throws as the packer does. */
export function smoothWindow(options: SmoothOptions): Smoothing {
  const { fold, rule } = options;
  const rows = chosenRows(options), moments = counted(options);
  const unsmoothed = predictedLoss(rows, undefined, moments, options);
  let best: Smoothing = { scales: undefined, alpha: undefined, loss: unsmoothed, unsmoothed };
  const channels = channelsOf(options);
  for (const alpha of rule.strengths) {
    const elements = scalesOf(channels, rule.scale, alpha);
    if (elements.every((scale) => scale === 1)) continue;
    const inputs = Float32Array.from(fold.elementOf, (element) => elements[element]!);
    const loss = predictedLoss(rows, inputs, moments, options);
    if (loss < best.loss) best = { scales: { inputs, elements }, alpha, loss, unsmoothed };
  }
  return best;
}

/** What is known of the channels that share an element of the fold. */
function channelsOf({ matrix, source, measured, fold }: SmoothOptions): Channel[] {
  const channels = Array.from(
    { length: fold.elements },
    () => ({ square: 0, largest: 0, weight: 0, count: 0 }),
  );
  const largest = new Float32Array(matrix.inputs);
  for (const ref of matrix.sections) {
    valuesOf(matrixOf(source, ref, matrix.inputs)).forEach((w, at) => {
      const j = at % matrix.inputs;
      largest[j] = Math.max(largest[j]!, Math.abs(w));
    });
  }
  fold.elementOf.forEach((element, j) => {
    const channel = channels[element]!;
    channel.count++;
    channel.square += (measured.inputSquare[j]! - channel.square) / channel.count;
    channel.largest = Math.max(channel.largest, measured.inputMax[j]!);
    channel.weight = Math.max(channel.weight, largest[j]!);
  });
  return channels;
}

/**
 * Scales with a geometric mean of 1. A channel that the text never used has no size: its scale is 1.
 */
export function scalesOf(
  channels: readonly Channel[],
  scale: SmoothingRule["scale"],
  alpha: number,
): Float32Array {
  const raw = channels.map((channel) => {
    const isUsed = channel.square > 0 && channel.largest > 0 && channel.weight > 0;
    return isUsed ? Math.log(scale(channel, alpha)) : NaN;
  });
  const used = raw.filter(Number.isFinite);
  const mean = used.reduce((sum, log) => sum + log, 0) / used.length;
  const most = Math.log(MOST_SCALE);
  return Float32Array.from(
    raw,
    (log) => Number.isFinite(log) ? Math.exp(Math.min(most, Math.max(-most, log - mean))) : 1,
  );
}

interface Rows {
  /** [count, inputs] of each section. */
  readonly weights: readonly { readonly values: Float32Array; readonly fisher: Float32Array }[];
  /** [inputs]: sum over these rows of fisher_o W_oj^2. */
  readonly energy: Float64Array;
}

/** H alone: what is left when nothing is corrected. */
function counted({ rule, moments }: SmoothOptions): WindowMoments {
  const zeros = new Float32Array(moments.kept.length);
  return { inputs: moments.inputs, kept: rule.hessian(moments), crossed: zeros, chosen: zeros };
}

function chosenRows({ matrix, source, measured, rule }: SmoothOptions): Rows {
  const { sections, firstRows, inputs } = matrix;
  const outputs = sections.reduce((sum, ref) => sum + ref.outputs, 0);
  const stride = Math.ceil(outputs / rule.outputs);
  const energy = new Float64Array(inputs);
  const weights = sections.map((ref, i) => {
    const all = valuesOf(matrixOf(source, ref, inputs));
    const count = Math.ceil(ref.outputs / stride);
    const values = new Float32Array(count * inputs), fisher = new Float32Array(count);
    for (let r = 0; r < count; r++) {
      const row = all.subarray(r * stride * inputs, (r * stride + 1) * inputs);
      values.set(row, r * inputs);
      fisher[r] = measured.fisher[(firstRows[i] ?? 0) + r * stride]!;
      for (let j = 0; j < inputs; j++) energy[j]! += fisher[r]! * row[j]! ** 2;
    }
    return { values, fisher };
  });
  return { weights, energy };
}

/** Half of the mean squared error of the outputs, each times its Fisher weight: nats per token, of these rows alone. */
function predictedLoss(
  rows: Rows,
  scales: Float32Array | undefined,
  moments: WindowMoments,
  options: SmoothOptions,
): number {
  const { matrix: { inputs, format }, pack, threads } = options;
  if (format === undefined) throw new Error("smoothing comes after quantize");
  const inverse = scales?.map((scale) => 1 / scale);
  let loss = activationLoss(rows.energy, scales, options);
  for (const { values, fisher } of rows.weights) {
    const outputs = fisher.length, weight = values.slice(), error = new Float32Array(values.length);
    if (scales) scaleMatrix(weight, scales);
    const { bytes, dtype, shape } = tensorOf(weight, [outputs, inputs]);
    const { packed } = pack({ bytes, dtype, shape }, format, scales);
    errorOf(bytes, dtype, packed, format, outputs, inputs, error, threads);
    if (inverse) scaleMatrix(error, inverse);
    const energy = remainingEnergy({ error, outputs, inputs, moments, threads });
    loss += energy.reduce((sum, e, o) => sum + fisher[o]! * e / 2, 0);
  }
  return loss;
}

/**
 * What rounding x / s to int8 costs: errors are uniform within a step, a 127th of the largest of a token's group, and
 * independent; each counts with the energy of its column of W s.
 */
function activationLoss(
  energy: Float64Array,
  scales: Float32Array | undefined,
  { matrix: { inputs, format }, sample }: SmoothOptions,
): number {
  if (format === undefined || format.kind === "bf16" || sample.length === 0) return 0;
  let loss = 0;
  for (let first = 0; first < inputs; first += format.group) {
    const end = Math.min(inputs, first + format.group);
    let squares = 0;
    for (let token = 0; token < sample.length; token += inputs) {
      let largest = 0;
      for (let j = first; j < end; j++) {
        largest = Math.max(largest, Math.abs(sample[token + j]!) / (scales?.[j] ?? 1));
      }
      squares += (largest / 127) ** 2;
    }
    let columns = 0;
    for (let j = first; j < end; j++) columns += energy[j]! * (scales?.[j] ?? 1) ** 2;
    loss += columns * squares / (sample.length / inputs) / 12 / 2;
  }
  return loss;
}
