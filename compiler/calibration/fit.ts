/**
 * Weights and rows fitted to each other, one layer after the other: while the float model runs over the calibration's
 * text, the moments of a layer's inputs are added up under the filter of rows; then its windows are quantised under them,
 * rows are fitted to what that leaves, both are written, and the moments are dropped. The layer with the largest inputs
 * bounds the memory, beside the hidden states of all tokens.
 *
 * Inputs are those of the float model: inputs of the quantised one gained 1 % near the text and lost 11 % far from it.
 *
 * A quantiser that smooths has scales chosen for all windows of the layer first, since those of one divide rows of another.
 * Fitting is in the units of the model nevertheless, moments, errors and Fisher weights alike: with the input divided by s
 * and outputs by t, what is stored is W_oj s_j / t_o, and rows differ by factors of their scales alone.
 */
import { fitRows, type FittedRows, remainingEnergy } from "../../ffi/fitting.ts";
import type { PackedResidual } from "../../ffi/packing.ts";
import type { Graph } from "../ir/graph.ts";
import type { PackedWeight, WindowStore } from "../plan.ts";
import { storeFactors, subtractFactors } from "../weights/factors.ts";
import type { Inventory, Matrix } from "../weights/inventory.ts";
import { describe, packMatrix } from "../weights/pack.ts";
import type { Quantizer } from "../weights/quantizer.ts";
import { scaleMatrix, type SmoothedSource } from "../weights/smoothed.ts";
import type { WeightSource } from "../weights/source.ts";
import {
  mostRank,
  type StoredForms,
  type TensorSink,
  WindowErrors,
  writeResidual,
} from "../weights/window.ts";
import { fitFactors, type FittedFactors, type Whitening } from "./fit_factors.ts";
import { type Fold, foldsOf } from "./folds.ts";
import { type ObservedWindow, observeLayers } from "./layers.ts";
import type { RowFilter } from "./moments.ts";
import { type Smoothing, smoothWindow } from "./smooth.ts";
import type { Statistics } from "./statistics.ts";

/**
 * How much rows are fitted to prompts, which add all of them, beside tokens that choose. Measured on tiny-dense (q3s, 10 %
 * of the bytes): 0 leaves KL 0.0044 in decoding and 0.0017 in prompts, 0.3 leaves 0.0044 and 0.0012, 1 leaves 0.0048 and 0.0010.
 */
const PROMPTS = 0.3;

export interface FitOptions {
  readonly graph: Graph;
  readonly source: WeightSource;
  /** The same weights as they are stored: learns the scales of smoothed windows. */
  readonly stored: SmoothedSource;
  readonly statistics: Statistics;
  readonly quantizer: Quantizer;
  /** By window; a window without one gets no rows. */
  readonly filters: ReadonlyMap<string, RowFilter>;
  readonly forms: StoredForms;
  /** Components of factors that the plan reads, by window. */
  readonly ranks: ReadonlyMap<string, number>;
  readonly whitening: Whitening;
  readonly threads: number;
  readonly onProgress?: (done: number, total: number, what: string) => void;
  readonly signal?: AbortSignal;
}

/** What fitting found out about a window. */
export interface FittedWindow {
  readonly weight: PackedWeight;
  readonly store: WindowStore;
  /** ||W||^2. */
  readonly weightEnergy: number;
  /** Of factors; undefined without. */
  readonly spectrum: Float32Array | undefined;
  /** Rows a token chose, on average. */
  readonly chosen: number;
  /** Predicted loss in nats per token: of the backbone alone, and of what corrections leave. */
  readonly alone: number;
  readonly corrected: number;
  /** Of a quantiser that smooths; null where scales of the input fold into nothing exactly. */
  readonly smoothing?: Smoothing | null;
}

/** Fits and writes every window; the result has them in the inventory's order. */
export async function fitWindows(
  inventory: Inventory,
  sink: TensorSink,
  options: FitOptions,
): Promise<FittedWindow[]> {
  const { graph, source, statistics, filters, threads, onProgress, signal } = options;
  const fitted = new Map<string, FittedWindow>();
  const errors = new WindowErrors(threads);
  const folds = foldsOf(graph);
  const pass = {
    graph,
    source,
    text: statistics.text,
    threads,
    ...(onProgress ? { onProgress } : {}),
    ...(signal ? { signal } : {}),
  };
  await observeLayers(inventory, filters, pass, (layer) => {
    const names = layer.map(({ name }) => name);
    const smoothing = new Map(layer.map((window) => [window.name, smooth(window, names, folds, options)]));
    for (const window of layer) {
      fitted.set(window.name, fitWindow(window, smoothing.get(window.name), errors, sink, options));
    }
  });
  return inventory.matrices.flatMap(({ window }) => window === undefined ? [] : [fitted.get(window)!]);
}

/**
 * Chooses a window's scales, and tells them to the weights that they change; undefined: the quantiser does not smooth, or
 * not beside factors, which do not follow the scales.
 */
function smooth(
  { name, matrix, sums, moments }: ObservedWindow,
  layer: readonly string[],
  folds: ReadonlyMap<string, Fold>,
  { source, stored, statistics, quantizer, forms, threads }: FitOptions,
): Smoothing | null | undefined {
  const rule = quantizer.smoothing, fold = folds.get(name);
  if (rule === undefined || (forms.factors && !rule.isNeeded)) return undefined;
  // Another layer's weights may be written already.
  if (fold === undefined || (fold.window !== undefined && !layer.includes(fold.window))) return null;
  // Prepared once more when the window is fitted: kept for a whole layer, it would add two thirds to the moments.
  const [pack, { sample }] = [quantizer.window(moments), sums];
  const measured = statistics.windows.get(name)!;
  const smoothing = smoothWindow({ matrix, source, moments, measured, sample, fold, rule, pack, threads });
  if (smoothing.scales) {
    stored.multiplyColumns(matrix.sections, smoothing.scales.inputs);
    stored.divide(fold.tensor, smoothing.scales.elements);
  }
  return smoothing;
}

function fitWindow(
  { name: window, matrix, sums, moments }: ObservedWindow,
  smoothing: Smoothing | null | undefined,
  errors: WindowErrors,
  sink: TensorSink,
  options: FitOptions,
): FittedWindow {
  const { stored, statistics, quantizer, forms: { residual, factors: form }, threads } = options;
  const { inputs, rows: outputs } = matrix;
  const { filter, chosen } = sums;
  const scales = smoothing?.scales?.inputs;
  const pack = quantizer.window(moments);
  const sections = packMatrix(matrix, stored, (weight, format) => pack(weight, format, scales));
  sink.write(`${matrix.name}.packed`, ...sections.map((s) => s.packed));
  const divisors = divisorsOf(matrix, stored);
  const error = errors.measure(matrix, sections, matrix.format!);
  if (scales || divisors) {
    scaleMatrix(
      error,
      Float32Array.from({ length: inputs }, (_, j) => 1 / (scales?.[j] ?? 1)),
      divisors?.map((t) => 1 / t),
    );
  }
  const { fisher } = statistics.windows.get(window)!;
  const predicted = (rows?: FittedRows) => {
    const energy = remainingEnergy({ error, rows: rows?.values, outputs, inputs, moments, threads });
    return energy.reduce((sum, e, o) => sum + fisher[o]! * e / 2, 0);
  };
  const alone = predicted();
  const rank = options.ranks.get(window) ?? 0;
  // Beside rows, no other rank is of use; without them, plans may read more later.
  const storedRank = residual ? rank : mostRank(matrix, options.forms);
  let factors: FittedFactors | undefined;
  if (form && storedRank > 0) {
    const { whitening } = options, { dtype } = form;
    const fit = {
      error,
      outputs,
      inputs,
      moments: moments.kept,
      fisher,
      whitening,
      rank: storedRank,
      dtype,
      threads,
    };
    factors = fitFactors(fit);
    subtractFactors(error, factors, dtype, matrix, rank, threads);
  }
  // All that counts is W - Wq, less the factors.
  const values = new Float32Array(error.length);
  const rows = residual && filter && filter.most > 0
    ? fitRows({
      weight: error,
      values,
      outputs,
      inputs,
      moments,
      width: residual.width,
      prompts: PROMPTS,
      threads,
    })
    : undefined;
  return {
    weight: describe(matrix, sections),
    store: {
      window,
      inputs,
      outputs,
      errorEnergy: sections.reduce((sum, s) => sum + s.errorEnergy, 0),
      residual: residual && rows && filter
        ? writeResidual(sink, window, smoothedRows(rows, filter, scales, divisors), residual.width)
        : null,
      factors: form && factors ? storeFactors(sink, matrix, factors, form.dtype, storedRank) : null,
    },
    weightEnergy: sections.reduce((sum, s) => sum + s.energy, 0),
    spectrum: factors?.spectrum,
    chosen,
    alone,
    corrected: rows || rank > 0 ? predicted(rows) : alone,
    ...(smoothing === undefined ? {} : { smoothing }),
  };
}

/** What the outputs of a window are divided by, [outputs]; undefined: by nothing. */
function divisorsOf({ sections, firstRows, rows }: Matrix, stored: SmoothedSource): Float32Array | undefined {
  const divisors = new Float32Array(rows).fill(1);
  let isDivided = false;
  sections.forEach((ref, i) => {
    const own = stored.divisorsOf(ref);
    if (own === undefined) return;
    divisors.set(own, firstRows[i]);
    isDivided = true;
  });
  return isDivided ? divisors : undefined;
}

/** Rows for x / s that choose what they would choose for x: B_oj s_j / t_o, chosen by norm_j s_j. */
function smoothedRows(
  { codes, outputScale, channelScale }: FittedRows,
  { norms }: RowFilter,
  scales: Float32Array | undefined,
  divisors: Float32Array | undefined,
): PackedResidual {
  const times = (values: Float32Array<ArrayBuffer>) => scales ? values.map((v, j) => v * scales[j]!) : values;
  return {
    codes,
    outputScale: divisors ? outputScale.map((v, o) => v / divisors[o]!) : outputScale,
    channelScale: times(channelScale),
    norm: times(norms),
  };
}
