/**
 * budget: how much each window's correction may read per token, as a rank and a number of channels.
 *
 * Needs: stage "placed", statistics of every window (its error's energy; spectrum and norms where they are known).
 * Guarantees: stage "budgeted". One budget per window in node order, each with the cause of its size; the bytes of
 *   all windows stay within a budget of bytes. Rows and factors of one window compete in one greedy: the gain of
 *   each falls as either grows, so the greedy on gain per byte is within a quantum of the best. Weights in bf16 get
 *   no rows. Where the window's linear is on the GPU, a budget of bytes also stops where corrections would no longer hide
 *   beside it: their time on the CPU, and what goes over the link and back, stays within the linear's own time. Ranks and
 *   channels that were asked for are kept, and the cause says whether they hide.
 * Does not: insert nodes, look at weights, or (yet) know calibrated sensitivities: see `sensitivity` and
 *   `WindowStatistics.inputRms`.
 */
import { HcinferError } from "../errors.ts";
import type { Graph, WindowBudget } from "../ir/graph.ts";
import { verify } from "../ir/verify.ts";
import type { MachineProfile } from "../profile.ts";
import type { FactorDType, ResidualWidth } from "../weights/correction.ts";
import { factorBytesRead, residualBytesRead } from "../weights/correction.ts";
import { besideTime } from "./beside.ts";
import { channelCurve, rankCurve } from "./gain.ts";

/** What corrections may cost. `share` is of the bytes of the backbone's linear weights that lie in windows. */
export type Budget =
  | { readonly kind: "bytes"; readonly share: number }
  /** As bytes, but formats of windows compete with their corrections for backbone and share together. */
  | { readonly kind: "auto"; readonly share: number }
  /** As bytes, for factors whose ranks follow HCInfer's rule (calibration/paper_ranks.ts). */
  | { readonly kind: "paper"; readonly share: number }
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
  /** Singular values of E, largest first, as far as factors are kept; whitened ones where there was a calibration. */
  readonly spectrum?: Float32Array;
  /** ||E_j|| per input channel. */
  readonly norms?: Float32Array;
  /** The same of what factors of a rank leave, for rows beside factors; estimated. */
  readonly normsAfter?: (rank: number) => Float32Array;
  /** Root mean square of every input channel, from calibration. */
  readonly inputRms?: Float32Array;
  /** Where there was a calibration: the loss in nats per token that the window causes, and rows that a token chose. */
  readonly predicted?: { readonly alone: number; readonly corrected: number; readonly chosen: number };
  /** Where the quantiser smooths inputs: see report.ts. */
  readonly smoothing?: {
    readonly alpha: number | null;
    readonly isExact: boolean;
    readonly relativeLoss: number;
  };
}

/** Corrections of a window that a calibration decided. */
export type DecidedCorrections = Omit<WindowBudget, "window">;

export interface BudgetOptions {
  readonly correct: Correct;
  readonly budget: Budget;
  readonly statistics: readonly WindowStatistics[];
  /** Corrections by window, where they are decided already. */
  readonly decided?: ReadonlyMap<string, DecidedCorrections>;
  readonly residualWidth: ResidualWidth;
  readonly factorDType: FactorDType;
  readonly maxRank: number;
  /**
   * Loss that the whole error of a window costs, in any unit common to all windows. Calibration will measure it; the
   * default makes windows comparable without: relative error energy times bytes of the backbone.
   */
  readonly sensitivity?: (window: WindowStatistics) => number;
  /** The machine that predicts times; read only where linears are on a GPU. */
  readonly profile: MachineProfile;
  /** Threads of the CPU that predictions assume; default: all cores. */
  readonly threads?: number;
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
  const result: Graph = { ...graph, stage: "budgeted", budgets: windowBudgets(graph, options) };
  verify(result);
  return result;
}

/** One budget per window, in the order of their linears, whose placement says what hides beside them. */
export function windowBudgets(graph: Graph, options: BudgetOptions): WindowBudget[] {
  checkBudget(options);
  const statistics = new Map(options.statistics.map((s) => [s.window, s]));
  const linears = graph.nodes.filter((node) => node.op === "linear").filter((n) =>
    n.params.window !== undefined
  );
  const windows = linears.map((node) => node.params.window!);
  const bf16 = new Set(linears.filter((n) => n.params.format?.kind === "bf16").map((n) => n.params.window!));
  const beside = new Map(
    linears.filter((n) => n.placement.device === "gpu")
      .map((n) => [n.params.window!, n.placement.microseconds ?? 0]),
  );
  const none = { rank: 0, channels: 0 };
  return options.correct === "none"
    ? windows.map((window) => ({ window, ...none, cause: "no correction: corrections are off" }))
    : options.decided
    ? windows.map((window) => ({
      window,
      ...options.decided?.get(window) ?? { ...none, cause: "no corrections" },
    }))
    : allocate(
      windows.map((window) => {
        const found = statistics.get(window);
        if (found === undefined) throw new Error(`no statistics of window ${window}`);
        return found;
      }),
      { bf16, beside },
      options,
    );
}

/**
 * @param least of each window: bytes of the smallest correction there is
 * @throws {HcinferError} "usage" when a share above 0 is too few bytes for any of them
 */
export function refuseNothing(share: number, bytes: number, least: readonly number[]): void {
  const smallest = Math.min(...least);
  if (share === 0 || bytes >= smallest || smallest === Infinity) return;
  throw new HcinferError(
    "usage",
    `the budget of ${percent(share)} % holds nothing: it is ${
      Math.floor(bytes)
    } bytes a token, and the smallest ` +
      `correction takes ${Math.ceil(smallest)}; give at least ${
        percent(share * smallest / bytes)
      } %, or no corrections`,
  );
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
  if ("share" in budget) {
    if (budget.kind === "paper" && correct !== "low_rank" && correct !== "none") {
      refuse(`a budget of paper needs the correction "low_rank", found "${correct}"`);
    }
    if (budget.share >= 0 && budget.share <= 10) return;
    const share = `${100 * budget.share} %`;
    return refuse(`the budget's share of the backbone's bytes must be between 0 and 1000 %, found ${share}`);
  }
  // No corrections, no budget: whatever it says is left unread.
  const needs = { rank: "low_rank", channels: "sparse", "rank+channels": "both" }[budget.kind];
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
  /** Predicted microseconds of the window's linear on the GPU, beside which corrections run; undefined on the CPU. */
  readonly beside: number | undefined;
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

/** Whether a window's corrections with a step more still hide. */
function hides({ account, form, count }: Step, options: BudgetOptions): boolean {
  if (account.beside === undefined) return true;
  const more = { rank: account.rank, channels: account.channels, [form]: account[form] + count };
  return besideTime(account.window, more.rank, more.channels, options) <= account.beside;
}

/** Share of the error's energy that is captured; rows work on what the factors leave. */
function captured(account: Account, rank: number, channels: number): number {
  return 1 - (1 - account.rankShare(rank)) * (1 - account.channelShare(rank, channels));
}

/**
 * @param windows bf16: those whose weights no kernel can add rows to: they get none; beside: microseconds of those whose
 *   linear is on the GPU
 */
function allocate(
  statistics: readonly WindowStatistics[],
  windows: { readonly bf16: ReadonlySet<string>; readonly beside: ReadonlyMap<string, number> },
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
      maxChannels: exact || correct === "low_rank" || windows.bf16.has(window.window) ? 0 : window.inputs,
      rankShare: rankCurve(window.spectrum, window.errorEnergy),
      channelShare: channelShare(window),
      beside: windows.beside.get(window.window),
      rank: 0,
      channels: 0,
    };
  });
  let stopped: string;
  if (!("share" in budget)) {
    const { rank, channels } = { rank: 0, channels: 0, ...budget };
    for (const account of accounts) {
      account.rank = Math.min(rank, account.maxRank);
      account.channels = Math.min(channels, account.maxChannels);
    }
    const sizes = [rank > 0 ? `rank ${rank}` : "", channels > 0 ? `${channels} rows` : ""];
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
  const next = (account: Account) =>
    bestStep(account, options, (step) => step.bytes <= left && hides(step, options));
  const best = accounts.map(next);
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
    best[chosen] = next(step.account);
  }
}

/** The best next step of a window among those that are `allowed`. */
function bestStep(
  account: Account,
  options: BudgetOptions,
  allowed: (step: Step) => boolean = () => true,
): Step | undefined {
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
    .filter((s) => s.share > 0 && allowed(s))
    .sort((a, b) => b.gainPerByte - a.gainPerByte)[0];
}

/**
 * "96 rows of 4096: next 8 would win 0.8 % of the error for 2.3 kB; stopped by the budget of 10 % bytes", and on the GPU
 * "; 9.8 us of 13.6 us beside the GPU, hidden".
 */
function cause(account: Account, options: BudgetOptions, stopped: string): string {
  const { window, rank, channels, beside } = account;
  if (!(window.errorEnergy > 0)) return "no correction: the weights are exact";
  const spent = [
    ...(options.correct === "sparse" ? [] : [`rank ${rank} of ${account.maxRank}`]),
    ...(options.correct === "low_rank" ? [] : [`${channels} rows of ${account.maxChannels}`]),
  ].join(" and ");
  const next = bestStep(account, options);
  const hidden = beside === undefined ? "" : `; ${hiding(account, beside, options)}`;
  if (next === undefined) return `${spent}: all there are${hidden}`;
  const what = next.form === "rank" ? "the next rank" : `next ${next.count}`;
  const isTime = options.budget.kind === "bytes" && !hides(next, options);
  return `${spent}: ${what} would win ${percent(next.share)} % of the error for ${kilobytes(next.bytes)}; ${
    isTime ? "stopped by the time of the window" : stopped
  }${hidden}`;
}

function hiding(account: Account, beside: number, options: BudgetOptions): string {
  const { rank, channels, window } = account;
  const isNone = rank + channels === 0;
  const least = options.correct === "sparse" ? [0, channelQuantum(window.inputs)] as const : [1, 0] as const;
  const time = besideTime(window, ...isNone ? least : [rank, channels] as const, options);
  const of = `${time.toFixed(1)} us of ${beside.toFixed(1)} us beside the GPU`;
  return isNone ? `the least would take ${of}` : `${of}, ${time <= beside ? "hidden" : "not hidden"}`;
}

function percent(share: number): string {
  return String(Number((100 * share).toPrecision(2)));
}

function kilobytes(bytes: number): string {
  return `${(bytes / 1000).toFixed(1)} kB`;
}
