/**
 * What of a window's corrections hides beside its linear on the GPU: their time on the CPU, and what goes over the link and
 * back, against the linear's own.
 */
import { correctionCosts, predict, transferTime } from "../cost.ts";
import type { BudgetOptions, WindowStatistics } from "./budget.ts";

type Sizes = Pick<WindowStatistics, "inputs" | "outputs">;
type BesideOptions = Pick<BudgetOptions, "profile" | "threads" | "factorDType" | "residualWidth">;

/** Predicted microseconds of a window's corrections beside the GPU: on the CPU, and over the link and back. */
export function besideTime(
  { inputs, outputs }: Sizes,
  rank: number,
  channels: number,
  options: BesideOptions,
): number {
  const { profile, threads = profile.cpu.cores, factorDType, residualWidth } = options;
  const computing = correctionCosts({ inputs, outputs, rank, channels, factorDType, residualWidth })
    .reduce((sum, cost) => sum + predict(cost, profile, "cpu", { threads }), 0);
  const deltas = Number(rank > 0) + Number(channels > 0);
  if (deltas === 0) return 0;
  return computing + transferTime(profile, 4 * inputs) + transferTime(profile, 4 * outputs * deltas);
}

/** The most rows of a window that hide, with factors of a rank, beside its linear, `beside` microseconds on the GPU. */
export function mostRowsBeside(
  { rank = 0, ...sizes }: Sizes & { readonly rank?: number },
  beside: number,
  options: BesideOptions,
): number {
  return largest(sizes.inputs, (rows) => besideTime(sizes, rank, rows, options) <= beside);
}

/** The largest rank whose factors hide so, alone. */
export function mostRankBeside(
  sizes: Sizes,
  beside: number,
  options: BesideOptions,
): number {
  return largest(
    Math.min(sizes.inputs, sizes.outputs),
    (rank) => besideTime(sizes, rank, 0, options) <= beside,
  );
}

/** The largest of 0 to `most` that fits, where 0 does. */
function largest(most: number, fits: (value: number) => boolean): number {
  let [low, high] = [0, most];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (fits(middle)) low = middle;
    else high = middle - 1;
  }
  return low;
}
