/**
 * budget: how much each window's correction may read per token, as a rank and a number of channels.
 *
 * Needs: stage "placed", statistics of every window (its error's energy; spectrum and norms where they are known).
 * Guarantees: stage "budgeted". One budget per window in node order, each with the cause of its size; the bytes of
 *   all windows stay within a budget of bytes. Rows and factors of one window compete in one greedy: the gain of
 *   each falls as either grows, so the greedy on gain per byte is within a quantum of the best. Weights in bf16 get
 *   no rows.
 * Does not: insert nodes, look at weights, or (yet) know calibrated sensitivities and time: see `sensitivity`,
 *   `WindowStatistics.inputRms` and `BudgetOptions.microseconds`.
 */
import { HcinferError } from "../errors.ts";
import type { Graph, WindowBudget } from "../ir/graph.ts";
import { verify } from "../ir/verify.ts";
import type { FactorDType, ResidualWidth } from "../weights/correction.ts";
import { factorBytesRead, residualBytesRead } from "../weights/correction.ts";
import { channelCurve, rankCurve } from "./gain.ts";

/** What corrections may cost. `share` is of the bytes of the backbone's linear weights that lie in windows. */
export type Budget =
  | { readonly kind: "bytes"; readonly share: number }
  | { readonly kind: "rank"; readonly rank: number }
  | { readonly kind: "channels"; readonly channels: number }
  | { readonly kind: "rank+channels"; readonly rank: number; readonly channels: number };

export type Correct = "none" | "low_rank" | "sparse" | "both";

/** What the compiler measured of a window once its weights were packed. */
export interface WindowStatistics {
  readonly window: string;
  readonly inputs: number;
  /** Columns of the delta: sections padded to multiples of 16. */
  readonly outputs: number;
  /** Bytes of the window's packed weights, all read per token. */
  readonly backboneBytes: number;
  /** ||E||^2 and ||W||^2. */
  readonly errorEnergy: number;
  readonly weightEnergy: number;
  /** Singular values of E, largest first, as far as factors are kept; whitened ones once there is calibration. */
  readonly spectrum?: Float32Array;
  /** ||E_j|| per input channel. */
  readonly norms?: Float32Array;
  /** The same of what factors of a rank leave, for rows beside factors; estimated. */
  readonly normsAfter?: (rank: number) => Float32Array;
  /** Root mean square of every input channel, from calibration. */
  readonly inputRms?: Float32Array;
}

export interface BudgetOptions {
  readonly correct: Correct;
  readonly budget: Budget;
  readonly statistics: readonly WindowStatistics[];
  readonly residualWidth: ResidualWidth;
  readonly factorDType: FactorDType;
  readonly maxRank: number;
  /**
   * Loss that the whole error of a window costs, in any unit common to all windows. Calibration will measure it; the
   * default makes windows comparable without: relative error energy times bytes of the backbone.
   */
  readonly sensitivity?: (window: WindowStatistics) => number;
  /** Time each window may take beside the backbone. No time budgets yet: must be absent. */
  readonly microseconds?: never;
}

/** Channels the greedy adds at a time, about 0.4 % of a window's inputs and even; ranks are added one by one. */
function channelQuantum(inputs: number): number {
  return 2 * Math.max(1, Math.round(inputs / 512));
}

/** Relative error energy by bytes of the backbone: nearly the same fraction of channels for every window. */
function defaultSensitivity(window: WindowStatistics): number {
  return window.weightEnergy > 0 ? window.errorEnergy / window.weightEnergy * window.backboneBytes : 0;
}

export function budget(graph: Graph, options: BudgetOptions): Graph {
  checkBudget(options);
  const statistics = new Map(options.statistics.map((s) => [s.window, s]));
  const linears = graph.nodes.filter((node) => node.op === "linear").filter((n) =>
    n.params.window !== undefined
  );
  const windows = linears.map((node) => node.params.window!);
  const bf16 = new Set(linears.filter((n) => n.params.format?.kind === "bf16").map((n) => n.params.window!));
  const budgets = options.correct === "none"
    ? windows.map((window) => ({ window, rank: 0, channels: 0, cause: "no correction: corrections are off" }))
    : allocate(
      windows.map((window) => {
        const found = statistics.get(window);
        if (found === undefined) throw new Error(`no statistics of window ${window}`);
        return found;
      }),
      bf16,
      options,
    );
  const result: Graph = { ...graph, stage: "budgeted", budgets };
  verify(result);
  return result;
}

/** Throws HcinferError("usage") for a budget that is absurd or that the corrections cannot follow. */
export function checkBudget(
  { correct, budget, maxRank }: Pick<BudgetOptions, "correct" | "budget" | "maxRank">,
): void {
  const refuse = (message: string): never => {
    throw new HcinferError("usage", message);
  };
  const whole = (value: number, what: string) => {
    if (Number.isSafeInteger(value) && value >= 0) return;
    refuse(`${what} must be a whole number of 0 or more, found ${value}`);
  };
  if (budget.kind === "bytes") {
    if (budget.share >= 0 && budget.share <= 10) return;
    const share = `${100 * budget.share} %`;
    refuse(`the budget's share of the backbone's bytes must be between 0 and 1000 %, found ${share}`);
  }
  // No corrections, no budget: whatever it says is left unread.
  const needs =
    { rank: "low_rank", channels: "sparse", "rank+channels": "both", bytes: correct }[budget.kind];
  if (correct !== needs && correct !== "none") {
    refuse(
      `a budget of ${budget.kind.replace("+", " and ")} needs the correction "${needs}", found "${correct}"`,
    );
  }
  if ("channels" in budget) whole(budget.channels, "a number of channels");
  if ("rank" in budget) {
    whole(budget.rank, "a rank");
    if (budget.rank > maxRank) {
      refuse(`rank ${budget.rank} is more than the ${maxRank} components that are kept`);
    }
  }
}

/** A window on its way through the greedy. */
interface Account {
  readonly window: WindowStatistics;
  readonly sensitivity: number;
  readonly maxRank: number;
  readonly maxChannels: number;
  readonly rankShare: (rank: number) => number;
  /** Share that channels win of what factors of a rank leave. */
  readonly channelShare: (rank: number, channels: number) => number;
  rank: number;
  channels: number;
}

interface Step {
  readonly account: Account;
  readonly form: "rank" | "channels";
  readonly count: number;
  /** Share of the window's error that the step wins. */
  readonly share: number;
  readonly bytes: number;
  readonly gainPerByte: number;
}

/** Share of the error's energy that is captured; rows work on what the factors leave. */
function captured(account: Account, rank: number, channels: number): number {
  return 1 - (1 - account.rankShare(rank)) * (1 - account.channelShare(rank, channels));
}

/** @param bf16 windows whose weights no kernel can add rows to: they get none */
function allocate(
  statistics: readonly WindowStatistics[],
  bf16: ReadonlySet<string>,
  options: BudgetOptions,
): WindowBudget[] {
  const { budget, correct, sensitivity = defaultSensitivity } = options;
  const accounts = statistics.map((window): Account => {
    const exact = !(window.errorEnergy > 0);
    const maxRank = exact || correct === "sparse"
      ? 0
      : Math.min(options.maxRank, window.inputs, window.outputs, window.spectrum?.length ?? Infinity);
    return {
      window,
      sensitivity: sensitivity(window),
      maxRank,
      maxChannels: exact || correct === "low_rank" || bf16.has(window.window) ? 0 : window.inputs,
      rankShare: rankCurve(window.spectrum, window.errorEnergy),
      channelShare: channelShare(window),
      rank: 0,
      channels: 0,
    };
  });
  let stopped: string;
  if (budget.kind !== "bytes") {
    const { rank, channels } = { rank: 0, channels: 0, ...budget };
    for (const account of accounts) {
      account.rank = Math.min(rank, account.maxRank);
      account.channels = Math.min(channels, account.maxChannels);
    }
    const sizes = [rank > 0 ? `rank ${rank}` : "", channels > 0 ? `${channels} channels` : ""];
    stopped = `fixed at ${sizes.filter(Boolean).join(" and ") || "nothing"}`;
  } else {
    const backbone = statistics.reduce((sum, window) => sum + window.backboneBytes, 0);
    spend(accounts, Math.floor(backbone * budget.share), options);
    stopped = `stopped by the budget of ${percent(budget.share)} % bytes`;
  }
  return accounts.map((account) => ({
    window: account.window.window,
    rank: account.rank,
    channels: account.channels,
    cause: cause(account, options, stopped),
  }));
}

function channelShare({ inputs, norms, normsAfter, inputRms }: WindowStatistics): Account["channelShare"] {
  const curves = new Map<number, (channels: number) => number>();
  return (rank, channels) => {
    const key = normsAfter === undefined ? 0 : rank;
    const curve = curves.get(key) ?? channelCurve(inputs, normsAfter?.(rank) ?? norms, inputRms);
    curves.set(key, curve);
    return curve(channels);
  };
}

/** The greedy: always the step with the most loss per byte that still fits. */
function spend(accounts: readonly Account[], bytes: number, options: BudgetOptions): void {
  let left = bytes;
  const best = accounts.map((account) => bestStep(account, options, left));
  while (true) {
    let chosen = -1;
    let most = 0;
    best.forEach((step, i) => {
      if (step !== undefined && step.gainPerByte > most) {
        most = step.gainPerByte;
        chosen = i;
      }
    });
    const step = best[chosen];
    if (step === undefined) return;
    if (step.bytes <= left) {
      left -= step.bytes;
      step.account[step.form] += step.count;
    }
    best[chosen] = bestStep(step.account, options, left);
  }
}

/** The best next step of a window among those that cost at most `limit` bytes. */
function bestStep(account: Account, options: BudgetOptions, limit = Infinity): Step | undefined {
  const { window, rank, channels } = account;
  const now = captured(account, rank, channels);
  const step = (form: Step["form"], count: number, share: number, bytes: number): Step => {
    return { account, form, count, share, bytes, gainPerByte: account.sensitivity * share / bytes };
  };
  const steps: Step[] = [];
  if (rank < account.maxRank) {
    const bytes = factorBytesRead(options.factorDType, window.inputs, window.outputs, 1);
    steps.push(step("rank", 1, captured(account, rank + 1, channels) - now, bytes));
  }
  const count = Math.min(channelQuantum(window.inputs), account.maxChannels - channels);
  if (count > 0) {
    const bytes = residualBytesRead(options.residualWidth, window.outputs, count);
    steps.push(step("channels", count, captured(account, rank, channels + count) - now, bytes));
  }
  return steps
    .filter((s) => s.share > 0 && s.bytes <= limit)
    .sort((a, b) => b.gainPerByte - a.gainPerByte)[0];
}

/** "96 channels of 4096: next 8 would win 0.8 % of the error for 2.3 kB; stopped by the budget of 10 % bytes". */
function cause(account: Account, options: BudgetOptions, stopped: string): string {
  const { window, rank, channels } = account;
  if (!(window.errorEnergy > 0)) return "no correction: the weights are exact";
  const spent = [
    ...(options.correct === "sparse" ? [] : [`rank ${rank} of ${account.maxRank}`]),
    ...(options.correct === "low_rank" ? [] : [`${channels} channels of ${account.maxChannels}`]),
  ].join(" and ");
  const next = bestStep(account, options);
  if (next === undefined) return `${spent}: all there are`;
  const what = next.form === "rank" ? "the next rank" : `next ${next.count}`;
  return `${spent}: ${what} would win ${percent(next.share)} % of the error for ${
    kilobytes(next.bytes)
  }; ${stopped}`;
}

function percent(share: number): string {
  return String(Number((100 * share).toPrecision(2)));
}

function kilobytes(bytes: number): string {
  return `${(bytes / 1000).toFixed(1)} kB`;
}
