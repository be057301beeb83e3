/**
 * Other budgets for a bundle that is compiled: thresholds, numbers of rows and ranks within what it stores, as compiling
 * with the budget would choose them (calibration/decide.ts with statistics, passes/budget.ts without), and everything of
 * the plan that follows from them. Weights, rows and norms stay: they were fitted to the rows of the first budget, so a
 * compile does better. Tiny-dense in q3s, from 10 % to 5 %: KL 0.0061, compiled 0.0058; to 20 %: 0.0026, compiled 0.0024.
 *
 * What was measured of the backbone alone stays in the report; of its corrections, only what is predicted is known then.
 *
 * A bundle that was calibrated keeps what rows cost and win at every price (report.ts): one price is searched again over
 * all windows. Rows beside factors are rows of what factors of that rank leave, so there the rank is fixed.
 */
import { z } from "zod";
import { type Bundle, openBundle, readPlan } from "./bundle.ts";
import { checkGraph } from "./bundle_check.ts";
import { replacePlan } from "./bundle_writer.ts";
import type { MeasuredWindow } from "./calibration/candidates.ts";
import {
  countedRows,
  decidedCorrections,
  type Decision,
  hiddenBeside,
  rowsWithin,
} from "./calibration/decide.ts";
import { type Choice, CHOICES } from "./calibration/planned.ts";
import { CurveScores, priceOf } from "./calibration/scores.ts";
import { HcinferError } from "./errors.ts";
import type { WindowBudget } from "./ir/graph.ts";
import { printGraph } from "./ir/text.ts";
import {
  type Budget,
  checkBudget,
  refuseNothing,
  windowBudgets,
  type WindowStatistics,
} from "./passes/budget.ts";
import { layout } from "./passes/layout.ts";
import { recorrect } from "./passes/recorrect.ts";
import { schedule } from "./passes/schedule.ts";
import type { Plan, WindowStore } from "./plan.ts";
import { genericProfile, type MachineProfile, profileOf } from "./profile.ts";
import { replan } from "./replan.ts";
import { type MeasuredLoss, predictedLoss, type Report, type WindowReport } from "./report.ts";
import {
  factorBytesRead,
  type FactorDType,
  RESIDUAL_WIDTHS,
  residualBytesRead,
  type ResidualWidth,
} from "./weights/correction.ts";
import { packedShape, type WeightFormat } from "./weights/format.ts";
import { inventory } from "./weights/inventory.ts";

/** What a bundle's corrections may read from now on. */
export interface RebudgetOptions {
  readonly budget: Budget;
  /** The machine to plan for; default: the one that the bundle was made for, with its devices. */
  readonly profile?: MachineProfile;
}

export type Rebudgeted = Pick<Bundle, "plan" | "report">;

/**
 * Changes the budget of the bundle at `path`, in place or into a bundle at `output` with the same weights.
 *
 * @throws {HcinferError} "bundle" for what is none; "usage" for a budget that it cannot have; as `replan` for a machine
 */
export function rebudgetBundle(
  path: string,
  { output = path, ...options }: RebudgetOptions & { readonly output?: string },
): Rebudgeted {
  const from = readPlan(path);
  using bundle = openBundle(path, { verify: false });
  const changed = rebudget(bundle, options);
  replacePlan(from, output, { ...changed, graphText: printGraph(changed.plan.graph) });
  return changed;
}

/** The plan and the report with another budget. Throws as `rebudgetBundle`. */
export function rebudget(
  bundle: Pick<Bundle, "plan" | "report" | "tensor" | "path">,
  { budget, profile: machine }: RebudgetOptions,
): Rebudgeted {
  const { plan: compiled, report } = bundle;
  const plan = machine === undefined ? compiled : replan(compiled, { profile: machine });
  const profile = machine ?? profileOf(compiled) ?? genericProfile(1);
  const made = madeWith(compiled);
  const stored = storedForms(compiled, bundle.path);
  check(budget, stored);
  const options = { ...stored, budget, profile, choice: made.choice };
  const windows = windowsOf(bundle);
  const decision = windows.every((w) => w.store.residual === null || w.report?.rows !== undefined) &&
      stored.correct !== "low_rank"
    ? hiddenBeside(decided(windows, options), plan.graph, options)
    : undefined;
  const budgets = decision === undefined
    ? estimatedBudgets(plan, windows, options)
    : decidedBudgets(plan, windows, decision);
  const { graph, lanes, corrections } = schedule(recorrect(plan.graph, budgets, options), options);
  const changed: Plan = {
    ...plan,
    graph,
    lanes,
    corrections,
    memory: layout(graph),
    provenance: {
      ...plan.provenance,
      options: { ...made.options, budget },
      rebudgeted: { from: made.rebudgeted?.from ?? made.options.budget },
    },
  };
  const problem = checkGraph(changed);
  if (problem !== undefined) throw new Error(`another budget makes a plan that is not sound: ${problem}`);
  return { plan: changed, report: reportAfter(report, plan, decision) };
}

const Made = z.looseObject({
  options: z.looseObject({ choice: z.enum(CHOICES).optional(), budget: z.unknown() }).catch({
    budget: undefined,
  }),
  rebudgeted: z.looseObject({ from: z.unknown() }).optional().catch(undefined),
});

/** What a bundle says that it was made with, as far as it matters here. */
function madeWith({ provenance, graph }: Plan) {
  const { options, rebudgeted } = Made.parse(provenance);
  const choice: Choice = options.choice ??
    (graph.budgets.some((b) => b.channels > 0 && b.threshold === undefined) ? "count" : "threshold");
  return { options, rebudgeted, choice };
}

interface Stored {
  readonly correct: "sparse" | "low_rank" | "both";
  readonly residualWidth: ResidualWidth;
  readonly factorDType: FactorDType;
  /** The most components that a window stores. */
  readonly maxRank: number;
}

function storedForms({ windows }: Plan, path: string): Stored {
  const residual = windows.find((w) => w.residual !== null)?.residual;
  const factors = windows.flatMap((w) => w.factors ?? []);
  if (!residual && factors.length === 0) {
    throw new HcinferError(
      "usage",
      `${path} stores no corrections, so no budget can be spent: compile the model with --correct sparse, say ` +
        "(weights in bf16 have no error to correct)",
    );
  }
  return {
    correct: residual && factors.length > 0 ? "both" : residual ? "sparse" : "low_rank",
    residualWidth: RESIDUAL_WIDTHS.find((width) => width === residual?.width) ?? 4,
    factorDType: factors[0]?.dtype ?? "i8",
    maxRank: Math.max(0, ...factors.map((f) => f.maxRank)),
  };
}

function check(budget: Budget, { correct, maxRank }: Stored): void {
  if (budget.kind === "auto") {
    throw new HcinferError(
      "usage",
      "a budget of auto chooses formats, and the weights are packed: give bytes:N%, or compile again",
    );
  }
  if (correct === "both" && "rank" in budget) {
    throw new HcinferError(
      "usage",
      "rows beside factors are rows of what these leave, so the rank stays: give channels:N or bytes:N%, or compile again",
    );
  }
  if ("rank" in budget && budget.rank > maxRank) {
    throw new HcinferError(
      "usage",
      `rank ${budget.rank} is more than the ${maxRank} components that the bundle stores: compile again with --max-rank ` +
        budget.rank,
    );
  }
  checkBudget({ correct: correct === "both" ? "sparse" : correct, budget, maxRank });
}

/** A window with all that is known of it. */
interface StoredWindow {
  readonly store: WindowStore;
  readonly format: WeightFormat;
  readonly backboneBytes: number;
  readonly report: WindowReport | undefined;
  /** What rows are chosen by; empty without rows. */
  readonly norms: Float32Array<ArrayBuffer>;
}

function windowsOf(bundle: Pick<Bundle, "plan" | "report" | "tensor">): StoredWindow[] {
  const { plan, report } = bundle;
  const stores = new Map(plan.windows.map((store) => [store.window, store]));
  const reports = new Map(report.windows.map((r) => [r.window, r]));
  return inventory(plan.graph).matrices.flatMap(({ window = "", format, rows, inputs }) => {
    const store = stores.get(window);
    if (store === undefined || format === undefined) return [];
    const norms = store.residual === null
      ? []
      : bundle.tensor(`${window}.residual.norm`).bytes.slice().buffer;
    return [{
      store,
      format,
      backboneBytes: packedShape(format, rows, inputs).bytes,
      report: reports.get(window),
      norms: new Float32Array(norms),
    }];
  });
}

interface Options extends Stored {
  readonly budget: Budget;
  readonly choice: Choice;
  readonly profile: MachineProfile;
}

/** Bytes of a token that factors take before rows do. */
function factorBytes(windows: readonly StoredWindow[]): number {
  return windows.reduce((sum, { store: { factors, inputs, outputs } }) => {
    return sum + (factors === null ? 0 : factorBytesRead(factors.dtype, inputs, outputs, factors.maxRank));
  }, 0);
}

/** Rows by the curves of the calibration. */
function decided(windows: readonly StoredWindow[], { budget, residualWidth, choice }: Options): Decision {
  const measured = windows.map(({ store, format, backboneBytes, report, norms }): MeasuredWindow => {
    const rows = store.residual === null ? undefined : report?.rows;
    const scores = rows === undefined ? null : new CurveScores(rows, store.inputs);
    const loss = scores?.won(0) ?? 0;
    return { window: store.window, candidates: [{ format, bytes: backboneBytes, scores, loss, norms }] };
  });
  if (budget.kind === "channels") return countedRows(measured, budget.channels);
  const share = "share" in budget ? budget.share : 0;
  const backbone = windows.reduce((sum, w) => sum + w.backboneBytes, 0);
  const bytes = share * backbone - factorBytes(windows);
  refuseNothing(share, bytes, measured.map(({ candidates: [only] }) => only?.scores?.rowBytes ?? Infinity));
  return rowsWithin(measured, backbone + bytes, residualWidth, choice);
}

function decidedBudgets(plan: Plan, windows: readonly StoredWindow[], decision: Decision): WindowBudget[] {
  const rows = decidedCorrections(decision);
  const stores = new Map(windows.map(({ store }) => [store.window, store]));
  return plan.graph.budgets.map(({ window }) => {
    const rank = stores.get(window)?.factors?.maxRank ?? 0;
    return { window, channels: 0, cause: "no rows", ...rows.get(window), rank };
  });
}

/** Rows and ranks by what the weights alone tell. */
function estimatedBudgets(plan: Plan, windows: readonly StoredWindow[], options: Options): WindowBudget[] {
  const { correct, budget } = options;
  const backbone = windows.reduce((sum, w) => sum + w.backboneBytes, 0);
  const spent = correct === "both" ? factorBytes(windows) : 0;
  if (budget.kind === "bytes") {
    refuseNothing(budget.share, budget.share * backbone - spent, windows.map(leastBytes));
  }
  const left = budget.kind === "bytes" ? { ...budget, share: budget.share - spent / backbone } : budget;
  const statistics = windows.map((w) => statisticsOf(w, correct));
  const rowsOrRanks = correct === "both" ? "sparse" : correct;
  const budgets = windowBudgets(plan.graph, { ...options, correct: rowsOrRanks, budget: left, statistics });
  if (correct !== "both") return budgets;
  const stores = new Map(windows.map(({ store }) => [store.window, store]));
  return budgets.map((b) => {
    const rank = stores.get(b.window)?.factors?.maxRank ?? 0;
    return { ...b, rank, cause: `rank ${rank} as compiled and ${b.cause}` };
  });
}

function leastBytes({ store: { residual, factors, inputs, outputs } }: StoredWindow): number {
  const width = RESIDUAL_WIDTHS.find((w) => w === residual?.width);
  if (width !== undefined) return residualBytesRead(width, outputs, 1);
  return factors === null ? Infinity : factorBytesRead(factors.dtype, inputs, outputs, 1);
}

function statisticsOf(
  { store, backboneBytes, report, norms }: StoredWindow,
  correct: Stored["correct"],
): WindowStatistics {
  const { window, inputs, outputs, errorEnergy, residual, factors } = store;
  const relative = report?.relativeError ?? 0;
  const left = correct === "both" && residual !== null
    ? norms.reduce((sum, norm) => sum + norm * norm, 0)
    : errorEnergy;
  const spectrum = report?.spectrum?.slice(0, factors?.maxRank ?? 0) ?? [];
  return {
    window,
    inputs,
    outputs,
    backboneBytes,
    errorEnergy: correct === "sparse" && residual === null ? 0 : left,
    weightEnergy: relative > 0 ? errorEnergy / relative : 1,
    ...(correct === "low_rank" ? { spectrum: Float32Array.from(spectrum) } : {}),
    ...(residual === null ? {} : { norms }),
  };
}

/** Of a measurement, what another budget leaves true: the backbone is the same. */
function aloneOf({ corrected: _, ...alone }: MeasuredLoss): MeasuredLoss {
  return alone;
}

/** The report with what the new rows are estimated to leave. */
function reportAfter(report: Report, plan: Plan, decision: Decision | undefined): Report {
  const { price: _, measured, ...others } = report;
  const rest = measured === undefined ? others : { ...others, measured: aloneOf(measured) };
  if (decision === undefined) return rest;
  const inputs = new Map(plan.windows.map((store) => [store.window, store.inputs]));
  const windows = report.windows.map((window): WindowReport => {
    const decided = decision.windows.get(window.window);
    if (decided === undefined || window.predicted === undefined || window.rows === undefined) return window;
    const scores = new CurveScores(window.rows, inputs.get(window.window) ?? 0);
    return { ...window, rebudgeted: afterwards(scores, window.predicted, decided.expected) };
  });
  const price = decision.price === undefined ? {} : { price: decision.price };
  return { ...rest, windows, ...predictedLoss(windows), ...price };
}

/**
 * What so many rows are estimated to leave of a window's loss. The calibration has measured two points, no rows and the
 * `chosen` ones; the curve tells how much others win of round-to-nearest's error beside these. Fewer win that part of
 * what was won, more leave that part of what was left. Within a quarter of what `eval` measures at half and twice the bytes
 * (tiny-dense).
 */
function afterwards(
  scores: CurveScores,
  { alone, corrected, chosen }: NonNullable<WindowReport["predicted"]>,
  expected: number,
): NonNullable<WindowReport["rebudgeted"]> {
  const won = (rows: number) => scores.won(priceOf(scores, rows));
  const [all, before, now] = [scores.won(0), won(chosen), won(expected)];
  const left = now <= before || all <= before
    ? alone - (alone - corrected) * (before > 0 ? Math.min(1, now / before) : 0)
    : corrected * Math.max(0, all - now) / (all - before);
  return { corrected: left, chosen: expected };
}
