/**
 * What corrections win back of a window's error: concave curves of the captured share of E[||x E||^2].
 *
 * Without calibration the inputs x_j are taken as independent, Laplace-distributed and of equal variance: heavier
 * tails than a Gaussian, as activations have. Calibration gives `inputRms`, and a spectrum weighted by it.
 */

/**
 * Share of the error's energy in the top fraction f of inputs, ordered by |x_j|: f (1 + t + t^2/2), t = -ln f. For
 * Laplace x, P(|x| > t) = e^-t and E[x^2; |x| > t] / E[x^2] = e^-t (1 + t + t^2/2).
 */
export function laplaceShare(fraction: number): number {
  if (fraction <= 0) return 0;
  if (fraction >= 1) return 1;
  const t = -Math.log(fraction);
  return fraction * (1 + t + t * t / 2);
}

/** Points of a sampled curve; between them it is linear, so it stays concave. */
const CURVE_POINTS = 96;
/** Scales within 9 % of each other count as equal. */
const BUCKETS_PER_OCTAVE = 8;

/**
 * Captured share as a function of the number of channels chosen by |x_j| * norm_j. With norms that differ the
 * threshold tau on |x_j| norm_j takes channel j with probability e^-a, a = tau / scale_j, and of its energy the
 * share e^-a (1 + a + a^2/2); both are summed over the channels for a row of thresholds.
 *
 * @param inputs number of channels
 * @param norms ||E_j|| per channel; absent: all equal
 * @param inputRms root mean square of each x_j from calibration; absent: all equal
 */
export function channelCurve(
  inputs: number,
  norms?: Float32Array,
  inputRms?: Float32Array,
): (channels: number) => number {
  // Channels of nearly equal scale are taken together: number of channels and their energy, by the logarithm of the scale.
  const buckets = new Map<number, { count: number; energy: number }>();
  let energy = 0;
  let largest = 0;
  for (let j = 0; j < inputs; j++) {
    const scale = (norms?.[j] ?? 1) * (inputRms?.[j] ?? 1);
    if (scale === 0) continue;
    const key = Math.round(BUCKETS_PER_OCTAVE * Math.log2(scale));
    const bucket = buckets.get(key) ?? { count: 0, energy: 0 };
    buckets.set(key, { count: bucket.count + 1, energy: bucket.energy + scale * scale });
    energy += scale * scale;
    largest = Math.max(largest, scale);
  }
  if ((norms === undefined && inputRms === undefined) || !(energy > 0)) {
    return (channels) => laplaceShare(channels / inputs);
  }
  const counts = [0];
  const shares = [0];
  for (let point = 0; point < CURVE_POINTS - 1; point++) {
    // From a threshold that hardly anything passes down to one that nearly everything passes, denser at its end.
    const tau = largest * 16 * (1 - point / (CURVE_POINTS - 1)) ** 3;
    let count = 0;
    let share = 0;
    for (const bucket of buckets.values()) {
      const a = tau / Math.sqrt(bucket.energy / bucket.count);
      const probability = Math.exp(-a);
      count += bucket.count * probability;
      share += bucket.energy * probability * (1 + a + a * a / 2);
    }
    counts.push(count);
    shares.push(share / energy);
  }
  counts.push(inputs);
  shares.push(1);
  return (channels) => interpolate(counts, shares, channels);
}

/** Captured share of the first `rank` components: their energy sigma^2 over that of the whole error. */
export function rankCurve(spectrum: Float32Array | undefined, errorEnergy: number): (rank: number) => number {
  const sums = [0];
  for (const sigma of spectrum ?? []) {
    sums.push(Math.min(1, (sums.at(-1) ?? 0) + sigma * sigma / Math.max(errorEnergy, Number.MIN_VALUE)));
  }
  return (rank) => sums[Math.min(rank, sums.length - 1)] ?? 0;
}

/** Linear interpolation; `xs` ascends. */
function interpolate(xs: readonly number[], ys: readonly number[], x: number): number {
  let low = 0;
  let high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((xs[middle] ?? 0) <= x) low = middle;
    else high = middle;
  }
  const [x0 = 0, x1 = 0, y0 = 0, y1 = 0] = [xs[low], xs[high], ys[low], ys[high]];
  return x1 <= x0 ? y1 : y0 + (y1 - y0) * Math.min(1, Math.max(0, (x - x0) / (x1 - x0)));
}
