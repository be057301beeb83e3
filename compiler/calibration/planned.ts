/**
 * What windows are planned to have, from what they were measured to be worth: by one price of bytes (allocate.ts), or as many
 * as were asked for.
 */
import { allocate } from "./allocate.ts";
import type { MeasuredCandidate } from "./candidates.ts";
import type { RowFilter } from "./moments.ts";
import { priceOf } from "./scores.ts";

/** How a token's rows are chosen: by one threshold for the whole model, or a fixed number in every window. */
export const CHOICES = ["threshold", "count"] as const;
export type Choice = typeof CHOICES[number];

/** A window with the formats that it may have. */
export interface Planning<C extends MeasuredCandidate> {
  readonly window: string;
  readonly candidates: readonly C[];
}

export interface PlannedWindow<C extends MeasuredCandidate> {
  readonly window: string;
  readonly candidate: C;
  readonly filter: RowFilter;
  /** Rows a token is expected to choose. */
  readonly expected: number;
  /** Components of factors. */
  readonly rank: number;
  /** Predicted loss in nats per token, uncorrected and left. */
  readonly loss: number;
  readonly left: number;
}

export interface Planned<C extends MeasuredCandidate> {
  /** Nats per megabyte, where one price decided; undefined without corrections, or where all of them fit. */
  readonly price: number | undefined;
  readonly windows: readonly PlannedWindow<C>[];
}

export type Planner = <C extends MeasuredCandidate>(windows: readonly Planning<C>[]) => Planned<C>;

/**
 * A token's rows of a window are at most so many times the expected ones: what a step reads stays bounded on a text that is
 * harder than the calibration's, and buffers stay small. What it costs, tiny-dense in q3s at 10 % on held-out text and on
 * another domain (KL in thousandths of a nat, standard errors 0.03 and 0.05; mean and most kB that a token reads):
 *
 *   times    heldout          far
 *   2        4.31  266  364   5.68  270  385
 *   4        4.30  267  386   5.63  272  423
 *   8        4.28  267  389   5.63  272  433
 *   no cap   4.28  267  389   5.63  272  438
 *
 * 4 cut 0.1 to 0.3 % of the choices short, 2 cut 2.7 %.
 */
const MOST_OF_EXPECTED = 4;
const LEAST_CAP = 16;

/** Plans by one price. @param bytes, exactness see `allocate` */
export function byPrice(bytes: number, exactness: number, choice: Choice): Planner {
  return <C extends MeasuredCandidate>(windows: readonly Planning<C>[]) => {
    const { price, windows: allocated } = allocate(windows, bytes, exactness);
    return {
      price: price > 0 ? price : undefined,
      windows: allocated.map(({ candidate: chosen, ...window }, i) => {
        const candidate = windows[i]!.candidates.find((c) => c === chosen)!;
        const filter = rowFilter(candidate, window.expected, price, choice);
        return { ...window, candidate, filter, loss: candidate.loss };
      }),
    };
  };
}

/** Plans a number of channels, and the ranks that `rankOf` says, of every window's first format. */
export function asAsked(channels: number, rankOf: (window: string) => number): Planner {
  return (windows) => ({
    price: undefined,
    windows: windows.map(({ window, candidates }) => {
      const candidate = candidates[0]!, { norms, scores, factors, loss } = candidate;
      const most = Math.min(channels, norms.length), rank = rankOf(window);
      const won = (scores?.won(priceOf(scores, most)) ?? 0) + (factors?.won(rank) ?? 0);
      const filter = { norms, threshold: 0, most };
      return { window, candidate, filter, expected: most, rank, loss, left: Math.max(0, loss - won) };
    }),
  });
}

/** Rows by threshold, or as many as a token is expected to choose. */
function rowFilter(
  { norms, scores }: MeasuredCandidate,
  expected: number,
  price: number,
  choice: Choice,
): RowFilter {
  if (scores === null) return { norms, threshold: 0, most: 0 };
  if (choice === "count") return { norms, threshold: 0, most: Math.max(1, Math.round(expected)) };
  const cap = Math.max(LEAST_CAP, Math.ceil(MOST_OF_EXPECTED * expected));
  return { norms, threshold: Math.fround(Math.sqrt(price)), most: Math.min(norms.length, cap) };
}
