/** Where a decoded token's time and bytes go, ranked: what is predicted, and what was measured beside it. */
import type { Prediction } from "../compiler/inspect.ts";
import type { PredictedKind } from "../compiler/inspect_kinds.ts";
import type { Measured } from "./inspect_measure.ts";
import { wrapped } from "./summary.ts";
import { bytesText, percentText, table } from "./terminal.ts";

/** How corrections run, in words. */
const MODES = { inline: "corrections in line", async: "corrections beside it", off: "no corrections" };

interface Ranked extends PredictedKind {
  /** Microseconds that kinds are ranked by: those that were measured, where any were. */
  readonly time: number;
}

/** What takes longest stands first, as measured where it was. */
export function rankingText(prediction: Prediction, measured?: Measured): string {
  const { kinds, kindsMode, profile, profileMeasured, threads, context } = prediction;
  const found = new Map(measured?.kinds.map(({ kind, microseconds }) => [kind, microseconds]));
  const ranked = kinds
    .map((kind): Ranked => ({ ...kind, time: measured ? found.get(kind.kind) ?? 0 : kind.microseconds }))
    .sort((a, b) => b.time - a.time);
  const sum = (of: (kind: Ranked) => number) => ranked.reduce((total, kind) => total + of(kind), 0);
  const all: Ranked = {
    kind: "all",
    nodes: sum((kind) => kind.nodes),
    bytesRead: sum((kind) => kind.bytesRead),
    microseconds: sum((kind) => kind.microseconds),
    time: measured?.microseconds ?? sum((kind) => kind.time),
  };
  const columns: readonly (readonly [string, (kind: Ranked) => string])[] = [
    ["kind", ({ kind }) => kind],
    ["nodes", ({ nodes }) => `${nodes}`],
    ["bytes read", ({ bytesRead }) => bytesText(bytesRead)],
    [measured ? "predicted us" : "us", ({ microseconds }) => microseconds.toFixed(1)],
    ...measured ? [["measured us", ({ time }: Ranked) => time.toFixed(1)] as const] : [],
    ["share", ({ time }) => percentText(time / (all.time || 1))],
    ...measured ? [["GB/s", ({ bytesRead, time }: Ranked) => rateText(bytesRead, time)] as const] : [],
  ];
  const machine = `${profile}${profileMeasured ? "" : " (not measured)"}`;
  const predicted = `predicted for ${machine}, ${threads} thread${threads === 1 ? "" : "s"}, ` +
    `${MODES[kindsMode]}, ${context} positions cached`;
  const ran = measured === undefined ? [] : [
    `measured on ${measured.device}, ${MODES[measured.mode]}, ${measured.context} positions cached: ` +
    `medians of ${measured.steps} steps of random tokens` +
    (measured.threads > 1 ? "; a kind's time includes waits between threads" : ""),
  ];
  return [
    "Where a token's time and bytes go",
    table(
      columns.map(([head]) => head),
      [...ranked, all].map((kind) => columns.map(([, cell]) => cell(kind))),
    ),
    ...[predicted, ...ran].map((text) => wrapped(text, 0)),
  ].join("\n");
}

function rateText(bytes: number, microseconds: number): string {
  return microseconds > 0 ? (bytes / microseconds / 1e3).toFixed(1) : "";
}
