/**
 * What a compile with statistics decides before a weight is quantised: the formats of windows where the budget is free to
 * choose them, ranks of factors, and by what rows are chosen for a token. All follow from one price of bytes (allocate.ts).
 */
import type { Graph } from "../ir/graph.ts";
import { paddedOutputs } from "../ir/naming.ts";
import { type Budget, type BudgetOptions, type DecidedCorrections, refuseNothing } from "../passes/budget.ts";
import { mostRankBeside, mostRowsBeside } from "../passes/beside.ts";
import type { ChosenFormat } from "../passes/quantize.ts";
import type { ResidualWidth } from "../weights/correction.ts";
import {
  formatFor,
  type FormatKind,
  formatText,
  type GroupSize,
  packedShape,
  type WeightFormat,
} from "../weights/format.ts";
import { type Inventory, inventory } from "../weights/inventory.ts";
import type { WeightSource } from "../weights/source.ts";
import { mostRank, type StoredForms } from "../weights/window.ts";
import {
  measureCandidates,
  type MeasuredCandidate,
  type MeasuredWindow,
  type MeasureOptions,
} from "./candidates.ts";
import { measureFactors, rescoreRows } from "./factor_candidates.ts";
import type { Whitening } from "./fit_factors.ts";
import type { RowFilter } from "./moments.ts";
import { paperRanks } from "./paper_ranks.ts";
import { paperWindows } from "./paper_windows.ts";
import { asAsked, byPrice, type Choice, type Planned, type Planner } from "./planned.ts";
import { priceOf, type RowValue } from "./scores.ts";
import type { Statistics } from "./statistics.ts";

export interface DecideOptions {
  readonly source: WeightSource;
  readonly statistics: Statistics;
  readonly weights: FormatKind;
  readonly group: GroupSize;
  readonly budget: Budget;
  readonly choice: Choice;
  readonly forms: StoredForms;
  readonly whitening: Whitening;
  /** Null: no rows. */
  readonly residualWidth: ResidualWidth | null;
  readonly threads: number;
  readonly onProgress?: (done: number, total: number, what: string) => void;
  readonly signal?: AbortSignal;
}

export interface WindowDecision {
  readonly format: WeightFormat;
  readonly filter: RowFilter;
  /** Components of factors. */
  readonly rank: number;
  /** Rows a token is expected to choose. */
  readonly expected: number;
  /** What the rows are worth; null without rows. */
  readonly scores: RowValue | null;
  /** Predicted loss in nats per token: uncorrected, and left by the corrections; of round-to-nearest. */
  readonly loss: number;
  readonly left: number;
}

export interface Decision {
  /** Nats per megabyte; undefined where the number of rows was asked for. */
  readonly price: number | undefined;
  /** Formats of packed weights that the budget chose; empty where all are the one that was asked for. */
  readonly formats: ReadonlyMap<string, ChosenFormat>;
  readonly windows: ReadonlyMap<string, WindowDecision>;
}

/** Share of a row's energy that its codes lose, by their bits: of normally distributed errors in a uniform symmetric code. */
const ROW_ERROR = { 2: 0.19, 3: 0.05, 4: 0.013, 5: 0.004, 8: 0 } as const satisfies Record<
  ResidualWidth,
  number
>;

const LEAST_EXPECTED = 1e-3;

/** Formats that a free budget chooses from, by the family of the format that was asked for. */
export function candidateKinds(weights: FormatKind): readonly FormatKind[] {
  const small: readonly FormatKind[] = ["q2s", "q3s", "q4s"],
    large: readonly FormatKind[] = ["q2", "q3", "q4"];
  return small.includes(weights) ? small : large.includes(weights) ? large : [weights];
}

/**
 * Formats and rows first, as if there were no factors; then factors under what these rows leave, all under one price; then
 * rows again, of what the factors leave, for the bytes that are left.
 */
export async function decide(graph: Graph, options: DecideOptions): Promise<Decision> {
  const { weights, group, budget } = options;
  const needs = inventory(graph);
  const kinds = budget.kind === "auto" ? candidateKinds(weights) : [weights];
  const formats = kinds.map((kind) => formatFor(kind, group));
  const measuring = { ...options, graph, formats: () => formats };
  const measured = await measureCandidates(needs, measuring);
  const plan = planner(needs, measured, measuring, options);
  const planned = await planFactors(needs, measured, plan, measuring, options) ?? plan(measured);
  const decision = decisionOf(planned);
  if (budget.kind !== "auto") return decision;
  const names = new Map(needs.matrices.map((m) => [m.window, m.name]));
  return {
    ...decision,
    formats: new Map(planned.windows.map(({ window, candidate: { format } }) => {
      const cause = `${formatText(format)}: loses least for its bytes at one price for all windows`;
      return [names.get(window)!, { format, cause }];
    })),
  };
}

/** Formats are those that windows have anyway. */
function decisionOf({ price, windows }: Planned<MeasuredCandidate>): Decision {
  return {
    price,
    formats: new Map(),
    windows: new Map(windows.map(({ window, candidate: { format, scores }, ...planned }) => {
      return [window, { ...planned, format, scores }];
    })),
  };
}

/** As many rows in every window, in the first format there is. */
export function countedRows(measured: readonly MeasuredWindow[], channels: number): Decision {
  return decisionOf(asAsked(channels, () => 0)(measured));
}

/** What is best for so many bytes that a token may read, of packed weights and of rows. */
export function rowsWithin(
  measured: readonly MeasuredWindow[],
  bytes: number,
  residualWidth: ResidualWidth | null,
  choice: Choice,
): Decision {
  return decisionOf(byPrice(bytes, 1 - ROW_ERROR[residualWidth ?? 8], choice)(measured));
}

function planner(
  needs: Inventory,
  measured: readonly MeasuredWindow[],
  measuring: MeasureOptions,
  { weights, group, budget, choice, residualWidth, forms }: DecideOptions,
): Planner {
  const matrices = new Map(
    needs.matrices.flatMap((m) => m.window === undefined ? [] : [[m.window, m] as const]),
  );
  const uniform = formatFor(weights, group);
  const backbone = [...matrices.values()].reduce(
    (sum, m) => sum + packedShape(uniform, m.rows, m.inputs).bytes,
    0,
  );
  if (budget.kind === "bytes" && residualWidth !== null) {
    refuseNothing(budget.share, budget.share * backbone, measured.map((w) => leastOf(w)));
  }
  if (budget.kind === "bytes" || budget.kind === "auto") {
    return byPrice((1 + budget.share) * backbone, 1 - ROW_ERROR[residualWidth ?? 8], choice);
  }
  if (budget.kind === "paper") {
    if (forms.factors === null) return asAsked(0, () => 0);
    const ranks = paperRanks(
      paperWindows(needs, measured, measuring, forms.factors),
      budget.share * backbone,
    );
    return asAsked(0, (window) => ranks.get(window)!);
  }
  const rank = "rank" in budget ? budget.rank : 0;
  return asAsked(
    "channels" in budget ? budget.channels : 0,
    (window) => Math.min(rank, mostRank(matrices.get(window)!, forms)),
  );
}

function leastOf({ candidates }: MeasuredWindow): number {
  return Math.min(...candidates.map(({ scores }) => scores?.rowBytes ?? Infinity));
}

/** Nothing where there are no factors, or their ranks were asked for and no rows stand beside them. */
async function planFactors(
  needs: Inventory,
  measured: readonly MeasuredWindow[],
  plan: Planner,
  measuring: MeasureOptions,
  { budget, residualWidth, forms: { factors }, whitening }: DecideOptions,
): Promise<Planned<MeasuredCandidate> | undefined> {
  if (factors === null || ("rank" in budget || budget.kind === "paper") && residualWidth === null) {
    return undefined;
  }
  const options = { ...measuring, factors, whitening };
  const alone = plan(measured);
  const filters = new Map(residualWidth === null ? [] : alone.windows.map((w) => [w.window, w.filter]));
  const planned = plan(await measureFactors(needs, measured, filters, options));
  if (residualWidth === null) return planned;
  const rescored = await rescoreRows(needs, new Map(planned.windows.map((w) => [w.window, w])), options);
  const { price, windows } = plan(rescored);
  return {
    price,
    windows: windows.map((w, i) => ({
      ...w,
      rank: planned.windows[i]!.rank,
      loss: planned.windows[i]!.loss,
    })),
  };
}

/**
 * The decision on a placed graph: where a window's linear is on the GPU, its corrections hide beside it. A rank that would
 * need longer falls, but one that was asked for; then the threshold rises until the expected rows take what is left of the
 * linear's own time. A token may have twice as many.
 */
export function hiddenBeside(
  decision: Decision,
  graph: Graph,
  options: Omit<BudgetOptions, "statistics">,
): Decision {
  const windows = new Map(decision.windows);
  for (const node of graph.nodes) {
    if (node.op !== "linear" || node.placement.device !== "gpu") continue;
    const window = node.params.window, decided = windows.get(window ?? "");
    if (window === undefined || decided === undefined) continue;
    const { filter, scores, expected, loss } = decided;
    const outputs = paddedOutputs(node.params.weights).total;
    const sizes = { inputs: filter.norms.length, outputs };
    const beside = node.placement.microseconds ?? 0;
    const rank = "rank" in options.budget
      ? decided.rank
      : Math.min(decided.rank, mostRankBeside(sizes, beside, options));
    if (rank !== decided.rank) windows.set(window, { ...decided, rank });
    if (scores === null) continue;
    const hidden = mostRowsBeside({ ...sizes, rank }, beside, options);
    const most = Math.min(filter.most, Math.max(1, filter.threshold > 0 ? 2 * hidden : hidden));
    if (expected <= hidden) {
      windows.set(window, { ...decided, rank, filter: { ...filter, most } });
      continue;
    }
    const price = priceOf(scores, hidden);
    const threshold = filter.threshold > 0 ? Math.fround(Math.sqrt(price)) : 0;
    const left = loss - scores.won(price);
    windows.set(window, {
      ...decided,
      rank,
      filter: { ...filter, threshold, most },
      expected: scores.expected(price),
      left,
    });
  }
  return { ...decision, windows };
}

/** What the pass `budget` is told. */
export function decidedCorrections({ price, windows }: Decision): Map<string, DecidedCorrections> {
  return new Map([...windows].map(([window, decision]) => {
    const { filter: { threshold, most }, expected, rank } = decision;
    const cause = causeOf(decision, price);
    if (threshold === 0 || most === 0) return [window, { rank, channels: most, cause }];
    // No window's rows are ruled out: a token harder than any of the calibration's may choose some.
    const mean = Math.min(most, Math.max(LEAST_EXPECTED, expected));
    return [window, { rank, channels: most, threshold, expected: mean, cause }];
  }));
}

function causeOf(decision: WindowDecision, price: number | undefined): string {
  const { format, filter, rank, expected, left, loss, scores } = decision;
  const most = `at most ${filter.most} of ${filter.norms.length}`;
  const rows = filter.most === 0
    ? `no rows: none of ${filter.norms.length} is worth its bytes and its time`
    : price === undefined || filter.threshold === 0
    ? `${filter.most} rows of ${filter.norms.length}`
    : `${expected.toFixed(1)} rows a token (${most})`;
  const forms = [...rank > 0 || scores === null ? [`rank ${rank}`] : [], ...scores === null ? [] : [rows]];
  const worth = price === undefined ? "" : `, what is worth ${price.toPrecision(2)} nats per MB`;
  const remains = left < loss ? ` -> ${left.toPrecision(2)}` : "";
  return `${forms.join(" and ")}${worth}: predicted loss ${loss.toPrecision(2)}${remains} nats in ${
    formatText(format)
  }`;
}
