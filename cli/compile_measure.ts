/**
 * How far a bundle that was just compiled is from its float model, for its report: some windows of the calibration's own
 * text, decoded by the backbone alone and with its corrections. A few seconds beside a compile with statistics, and no
 * held-out text, so `eval` stays what says how good a bundle is; this tells what cannot be left to a prediction, a backbone
 * that is poor alone. An interrupt leaves the bundle as it was compiled. On the CPU wherever the bundle is to run, so the figures are the same on every machine.
 */
import { openBundle, readPlan } from "../compiler/bundle.ts";
import { replacePlan } from "../compiler/bundle_writer.ts";
import { calibrationGraph } from "../compiler/calibration/calibrate.ts";
import { floatLogits } from "../compiler/calibration/logits.ts";
import type { CalibrationText } from "../compiler/calibration/statistics.ts";
import type { MeasuredLoss, Report } from "../compiler/report.ts";
import { openCheckpoint } from "../compiler/weights/checkpoint.ts";
import { checkpointSource } from "../compiler/weights/source.ts";
import { openExecutor } from "../runtime/devices.ts";
import { compareWindow } from "../runtime/evaluate.ts";
import type { Executor } from "../runtime/executor.ts";
import { tokenLoss } from "../runtime/executors/cpu/executor.ts";
import { type Mean, summarise, type WindowSums } from "../runtime/window_sums.ts";

/**
 * Windows of text, each of at most so many tokens. Eight windows of 256 give the divergence within about 5 %: enough to tell a
 * backbone that is poor alone.
 */
const WINDOWS = 8, WINDOW_TOKENS = 256;

export interface MeasureOptions {
  /** The checkpoint that the bundle was compiled from. */
  readonly model: string;
  readonly bundle: string;
  /** Of the statistics: windows of text in an order that makes the first few a fair sample. */
  readonly text: CalibrationText;
  /** The figures are the same for any number. */
  readonly threads: number;
  /** Steps done, of how many. May throw to end the work. */
  readonly onProgress: (done: number, total: number, what: string) => void;
}

/**
 * Measures the bundle and writes what was found into its report, which is returned.
 *
 * @throws {HcinferError} as openBundle, openCheckpoint and openExecutor do; "bundle" for logits that are not numbers
 */
export async function measureBundle(options: MeasureOptions): Promise<Report> {
  const measured = await measureLoss(options);
  const file = readPlan(options.bundle);
  const report = { ...file.report, measured };
  replacePlan(file, options.bundle, { plan: file.plan, graphText: file.graphText, report });
  return report;
}

async function measureLoss(
  { model, bundle: path, text, threads, onProgress }: MeasureOptions,
): Promise<MeasuredLoss> {
  using checkpoint = openCheckpoint(model);
  using bundle = openBundle(path, { verify: false });
  const windows = firstWindows(text);
  const [first] = windows;
  const length = first!.length - 1;
  const limits = { contextLength: length, capacity: length };
  const open = (corrections: "off" | "inline") =>
    openExecutor(bundle, { threads, corrections, device: "cpu", ...limits });
  using alone = open("off");
  using corrected = bundle.plan.corrections.mode === "off" ? undefined : open("inline");

  const graph = await calibrationGraph(checkpoint);
  const expected = await floatLogits({
    graph,
    source: checkpointSource(checkpoint),
    text: { tokens: Int32Array.from(windows.flatMap((w) => [...w])), window: length + 1 },
    threads,
    onProgress: (done, total) => onProgress(done, total, "logits of the float model"),
  });
  const sums: Record<"alone" | "corrected", WindowSums[]> = { alone: [], corrected: [] };
  for (const [i, window] of windows.entries()) {
    onProgress(i, windows.length, "windows of text to measure the loss");
    const vocabulary = alone.model.vocabularySize;
    const reference = expected(i).subarray(0, length * vocabulary);
    sums.alone.push(await compare(alone, window, reference));
    if (corrected !== undefined) sums.corrected.push(await compare(corrected, window, reference));
  }
  return {
    tokens: windows.length * length,
    windows: windows.length,
    alone: divergenceOf(sums.alone),
    ...(corrected === undefined ? {} : { corrected: divergenceOf(sums.corrected) }),
  };
}

/** The beginnings of the first windows of text. */
function firstWindows({ tokens, window }: CalibrationText): Int32Array[] {
  const count = Math.min(WINDOWS, tokens.length / window), length = Math.min(WINDOW_TOKENS, window);
  return Array.from({ length: count }, (_, i) => tokens.subarray(i * window, i * window + length));
}

/** Every token corrected as a decoded one is; the last is only predicted. */
async function compare(executor: Executor, window: Int32Array, reference: Float32Array): Promise<WindowSums> {
  using sequence = executor.sequence();
  const tokens = window.subarray(0, -1);
  const run = { sequence, position: 0, tokens, as: "decode", logits: "all" } as const;
  const [logits] = await executor.stepAsync({ runs: [run] });
  return compareWindow(window, logits!, reference, (own, other, target) => tokenLoss(own, target, other));
}

function divergenceOf(sums: readonly WindowSums[]): MeasuredLoss["alone"] {
  const { mean, standardError }: Mean = summarise(sums).means.reference!.divergence;
  return { mean, standardError: standardError ?? null };
}
