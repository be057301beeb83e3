/**
 * What low-rank factors of every window would win: as candidates.ts measures rows, from errors of round-to-nearest and from a
 * part of the calibration's text. Factors and rows share the error: factors are fitted under the moments that the rows
 * leave, and rows are scored again by what the factors leave.
 */
import { remainingEnergy } from "../../ffi/fitting.ts";
import { factorBytesRead } from "../weights/correction.ts";
import { subtractFactors } from "../weights/factors.ts";
import type { Inventory, Matrix } from "../weights/inventory.ts";
import type { WindowMoments } from "../weights/quantizer.ts";
import type { StoredForms } from "../weights/window.ts";
import { FactorGains } from "./allocate.ts";
import {
  errorIn,
  firstOf,
  type MeasuredCandidate,
  type MeasuredWindow,
  type MeasureOptions,
  scoreRows,
  scoresOf,
} from "./candidates.ts";
import { fitFactors, type FittedFactors, type Whitening } from "./fit_factors.ts";
import { observeLayers } from "./layers.ts";
import type { RowFilter } from "./moments.ts";

export interface FactorOptions extends MeasureOptions {
  readonly factors: NonNullable<StoredForms["factors"]>;
  readonly whitening: Whitening;
}

/** A format of a window with its factors. */
export interface FactorCandidate extends MeasuredCandidate {
  readonly components: FittedFactors;
  readonly factors: FactorGains;
}

export interface FactorWindow extends MeasuredWindow {
  readonly candidates: readonly FactorCandidate[];
}

/** Windows of text under which factors are measured: moments need more tokens than channels, or they flatter the factors. */
const TEXT_WINDOWS = 32;

/** @param filters of the rows that factors would stand beside, by window; none: no rows */
export async function measureFactors(
  inventory: Inventory,
  measured: readonly MeasuredWindow[],
  filters: ReadonlyMap<string, RowFilter>,
  options: FactorOptions,
): Promise<FactorWindow[]> {
  const { graph, source, statistics, threads, onProgress, signal } = options;
  const candidates = new Map(measured.map((w) => [w.window, w.candidates]));
  const found = new Map<string, FactorCandidate[]>();
  const pass = {
    graph,
    source,
    text: firstOf(statistics.text, TEXT_WINDOWS),
    threads,
    ...(onProgress
      ? { onProgress: (d: number, t: number) => onProgress(d, t, "what factors are worth") }
      : {}),
    ...(signal ? { signal } : {}),
  };
  await observeLayers(inventory, filters, pass, (layer) => {
    for (const { name, matrix, moments } of layer) {
      found.set(name, candidates.get(name)!.map((c) => withFactors(matrix, c, moments, options)));
    }
  });
  return measured.map(({ window }) => ({ window, candidates: found.get(window)! }));
}

function withFactors(
  matrix: Matrix,
  candidate: MeasuredCandidate,
  moments: WindowMoments,
  options: FactorOptions,
): FactorCandidate {
  const { statistics, factors: { dtype, maxRank }, whitening, threads } = options;
  const { inputs, rows: outputs, window } = matrix;
  const { fisher } = statistics.windows.get(window!)!;
  const error = errorIn(matrix, candidate.format, options);
  // Without rows the moments are those of all inputs, and say what the error costs.
  const loss = options.residualWidth === null
    ? remainingEnergy({ error, outputs, inputs, moments, threads }).reduce(
      (sum, e, o) => sum + fisher[o]! * e / 2,
      0,
    )
    : candidate.loss;
  const components = fitFactors({
    error,
    outputs,
    inputs,
    moments: moments.kept,
    fisher,
    whitening,
    rank: Math.min(maxRank, inputs, outputs),
    dtype,
    threads,
  });
  const factors = new FactorGains(components.gains, factorBytesRead(dtype, inputs, outputs, 1));
  return { ...candidate, loss, components, factors };
}

/** Every window in its planned format, with norms and scores of rows that stand beside its planned components. */
export async function rescoreRows(
  { matrices }: Inventory,
  planned: ReadonlyMap<string, { readonly candidate: FactorCandidate; readonly rank: number }>,
  options: FactorOptions,
): Promise<MeasuredWindow[]> {
  const rescored = matrices.flatMap((matrix) => {
    const { window } = matrix, found = planned.get(window ?? "");
    if (window === undefined || found === undefined) return [];
    const { candidate: { format, bytes, components, factors }, rank } = found;
    const error = errorIn(matrix, format, options);
    subtractFactors(error, components, options.factors.dtype, matrix, rank, options.threads);
    return [{ window, format, bytes: bytes + rank * factors.bytes, ...scoresOf(matrix, error, options) }];
  });
  await scoreRows(new Map(rescored.map(({ window, scores }) => [window, [scores]])), options);
  return rescored.map(({ window, ...c }) => ({ window, candidates: [{ ...c, loss: c.scores.loss }] }));
}
