/** report.json of a bundle: what compiling measured, for `inspect`, and for budgets that change later (rebudget.ts). */
import { z } from "zod";
import type { Decision } from "./calibration/decide.ts";
import { RowCurve } from "./calibration/scores.ts";
import { listOf } from "./json.ts";
import type { WindowStatistics } from "./passes/budget.ts";
import type { Plan } from "./plan.ts";

export const WindowReport = z.strictObject({
  window: z.string(),
  /** ||W - Wq||^2 / ||W||^2, and ||W - Wq||^2. */
  relativeError: z.number().nonnegative(),
  errorEnergy: z.number().nonnegative(),
  /** Of factors: singular values, largest first. */
  spectrum: listOf(z.number()).optional(),
  /**
   * With statistics: the loss in nats per token that the window is predicted to cause without corrections and with them, and
   * rows that a token chose on average, all over the calibration's text.
   */
  predicted: z.strictObject({ alone: z.number(), corrected: z.number(), chosen: z.number() }).optional(),
  /**
   * Where the quantiser smooths inputs: how strongly (null: not at all, since no scales are better or since they would change
   * the model), and the predicted loss of the outputs looked at relative to no smoothing.
   */
  smoothing: z.strictObject({ alpha: z.number().nullable(), isExact: z.boolean(), relativeLoss: z.number() })
    .optional(),
  /** The same after the budget was changed without a compile: estimated from `predicted` and `rows`. */
  rebudgeted: z.strictObject({ corrected: z.number(), chosen: z.number() }).optional(),
  /** What rows cost and win at falling prices in nats per megabyte (calibration/scores.ts). */
  rows: RowCurve.optional(),
});

export type WindowReport = z.infer<typeof WindowReport>;

/** Mean over predicted tokens in nats, with its standard error over windows of text; null of a single window. */
const MeasuredMean = z.strictObject({ mean: z.number(), standardError: z.number().nonnegative().nullable() });

/** Divergence from the float model, KL(float || compiled), over the first windows of the calibration's text. */
export const MeasuredLoss = z.strictObject({
  /** Predicted tokens, and the windows of text they are in. */
  tokens: z.int().positive(),
  windows: z.int().positive(),
  /** The backbone without corrections. */
  alone: MeasuredMean,
  /** With corrections as decoding chooses them; absent without any, and after the budget was changed (rebudget.ts). */
  corrected: MeasuredMean.optional(),
});
export type MeasuredLoss = z.infer<typeof MeasuredLoss>;

/** What compiling measured and predicted of a bundle: report.json. */
export const Report = z.strictObject({
  bytes: z.strictObject({
    backbone: z.number(),
    embeddingAndHead: z.number(),
    vectors: z.number(),
    residuals: z.number(),
    factors: z.number(),
  }),
  windows: listOf(WindowReport),
  /** Sums of what windows are predicted to lose, nats per token: an estimate of the divergence that `eval` measures. */
  predicted: z.strictObject({ alone: z.number(), corrected: z.number() }).optional(),
  /** What was measured of the same: `hcinfer compile` runs a bundle that was made with statistics. */
  measured: MeasuredLoss.optional(),
  /** Nats per megabyte, where one price decided; absent where there are no corrections, or all fit. */
  price: z.number().positive().optional(),
});
/** What compiling measured and predicted of a bundle: report.json. */
export type Report = z.infer<typeof Report>;

export function reportOf(
  plan: Pick<Plan, "weights" | "vectors" | "windows">,
  statistics: readonly WindowStatistics[],
  decision?: Decision,
): Report {
  const windowBytes = sum(statistics.map((s) => s.backboneBytes));
  const packedBytes = sum(plan.weights.map((w) => w.bytes));
  const windows = statistics.map((s): WindowReport => {
    const scores = decision?.windows.get(s.window)?.scores;
    return {
      window: s.window,
      relativeError: s.weightEnergy > 0 ? s.errorEnergy / s.weightEnergy : 0,
      errorEnergy: s.errorEnergy,
      ...(s.spectrum ? { spectrum: [...s.spectrum] } : {}),
      ...(s.predicted ? { predicted: s.predicted } : {}),
      ...(s.smoothing ? { smoothing: s.smoothing } : {}),
      ...(scores ? { rows: scores.curve() } : {}),
    };
  });
  return {
    bytes: {
      backbone: windowBytes,
      embeddingAndHead: packedBytes - windowBytes,
      vectors: 4 * sum(Object.values(plan.vectors)),
      residuals: sum(plan.windows.map((w) => w.residual?.bytes ?? 0)),
      factors: sum(plan.windows.map((w) => w.factors?.bytes ?? 0)),
    },
    windows,
    ...predictedLoss(windows),
    ...(decision?.price === undefined ? {} : { price: decision.price }),
  };
}

/** Of all windows, where a calibration has predicted theirs. */
export function predictedLoss(windows: readonly WindowReport[]): Pick<Report, "predicted"> {
  const alone = windows.flatMap(({ predicted }) => predicted?.alone ?? []);
  const corrected = windows.flatMap(({ predicted, rebudgeted }) =>
    rebudgeted?.corrected ?? predicted?.corrected ?? []
  );
  return alone.length === 0 ? {} : { predicted: { alone: sum(alone), corrected: sum(corrected) } };
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
