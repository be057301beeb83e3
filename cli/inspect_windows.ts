/** The windows of a plan as tables: a line for each kind of window, or for each window. */
import { windowKind } from "../compiler/inspect_kinds.ts";
import type { Report } from "../compiler/report.ts";
import { errorLeft, type Window } from "./summary.ts";
import { bytesText, table } from "./terminal.ts";

/** What numbers in the tables are. */
const LEGEND = [
  "error: ||E||^2 / ||W||^2 of the worst matrix, in %; left: about what corrections",
  "leave of it; rows, read: per token; stored, read: bytes of corrections.",
];

/** Windows in graph order by kind, `qkv`. */
function byKind(all: readonly Window[]): Map<string, Window[]> {
  const kinds = new Map<string, Window[]>();
  for (const window of all) {
    const kind = windowKind(window.name);
    kinds.set(kind, [...kinds.get(kind) ?? [], window]);
  }
  return kinds;
}

/** `||E||^2 / ||W||^2` of the worst matrix. */
function worstError({ weight }: Window): number {
  return Math.max(...weight.sections.map((section) => section.relativeError));
}

/** A line for each kind, with the range of its windows and the sums of their bytes. */
export function kindTable(all: readonly Window[], report: Report): string {
  const [hasRows, hasRanks] = [all.some((w) => w.channels > 0), all.some((w) => w.rank > 0)];
  const isCorrected = hasRows || hasRanks;
  const sum = (of: readonly number[]) => bytesText(of.reduce((total, bytes) => total + bytes, 0));
  // Both would not fit beside each other.
  const sizes = (rows: string, ranks: string) =>
    [hasRows ? rows : "", hasRanks ? ranks : ""].filter(Boolean).join(",\n");
  const rows = [...byKind(all)].map(([kind, windows]) => [
    kind,
    counts(windows.map(({ weight }) => weight.format)),
    sum(windows.map(({ weight }) => weight.bytes)),
    percents(windows.map(worstError)),
    ...isCorrected
      ? [
        percents(windows.map((w) => worstError(w) * errorLeft(w, report))),
        sizes(range(windows.map((w) => short(w.channels))), range(windows.map((w) => w.rank))),
        sum(windows.map((w) => w.bytesStored)),
        sum(windows.map((w) => w.bytesRead)),
      ]
      : [],
  ]);
  const head = [
    ...["kind", "windows", "bytes", "error"],
    ...isCorrected ? ["left", sizes("rows", "rank"), "stored", "read"] : [],
  ];
  return [table(head, rows, 2), ...LEGEND].join("\n");
}

/** Every window; us: predicted for the linear, +us: for its corrections. */
export function windowTable(all: readonly Window[], report: Report): string {
  const rows = all.map((window) => [
    window.name,
    window.weight.format,
    bytesText(window.weight.bytes),
    percents([worstError(window)]),
    percents([worstError(window) * errorLeft(window, report)]),
    `${window.rank}`,
    `${window.channels}`,
    bytesText(window.bytesStored),
    bytesText(window.bytesRead),
    (window.linear.placement.microseconds ?? 0).toFixed(1),
    window.nodes.reduce((sum, { placement }) => sum + (placement.microseconds ?? 0), 0).toFixed(1),
  ]);
  const head = ["window", "format", "bytes", "error", "left", "rank", "rows", "stored", "read", "us", "+us"];
  return [
    table(head, rows, 2),
    ...LEGEND,
    "us: predicted for the linear, +us: for its corrections.",
  ].join("\n");
}

/** What windows are predicted to lose, by kind: sums, and the range of single windows. Empty without a calibration. */
export function lossTable(all: readonly Window[], { windows, predicted }: Report): string {
  if (predicted === undefined) return "";
  const found = new Map(windows.map((window) => [window.window, window]));
  const rows = [...byKind(all)].flatMap(([kind, windows]) => {
    const losses = windows.flatMap(({ name }) => {
      const { predicted, rebudgeted } = found.get(name) ?? {};
      if (predicted === undefined) return [];
      return [{ alone: predicted.alone, corrected: rebudgeted?.corrected ?? predicted.corrected }];
    });
    if (losses.length === 0) return [];
    const [alone, corrected] = [losses.map((loss) => loss.alone), losses.map((loss) => loss.corrected)];
    const sum = (of: readonly number[]) => nats(of.reduce((total, loss) => total + loss, 0));
    return [[kind, sum(alone), sum(corrected), range(alone.map(nats)), range(corrected.map(nats))]];
  });
  return [
    "Loss, predicted on the calibration's text: nats a token, of all, and of one",
    table(["kind", "alone", "corrected", "one alone", "one corrected"], rows),
  ].join("\n");
}

/** A mean of rows in two digits, or in whole ones. */
function short(rows: number): string {
  return `${rows < 10 ? Number(rows.toPrecision(2)) : Math.round(rows)}`;
}

function nats(loss: number): string {
  return `${Number(loss.toPrecision(2))}`;
}

/** In percent, of shares: `0.70-0.83`. */
function percents(shares: readonly number[]): string {
  return range(shares.map((share) => share > 1e-5 ? (100 * share).toPrecision(2) : "0"));
}

/** `26-96`, or one number where all are alike. */
function range(numbers: readonly (number | string)[]): string {
  const sorted = [...numbers].sort((a, b) => Number(a) - Number(b));
  const [least, most] = [`${sorted[0]}`, `${sorted.at(-1)}`];
  return least === most ? least : `${least}-${most}`;
}

/** How many windows have each format, a line each, the most frequent first. */
function counts(formats: readonly string[]): string {
  const found = new Map<string, number>();
  for (const format of formats) found.set(format, (found.get(format) ?? 0) + 1);
  return [...found].sort(([, a], [, b]) => b - a).map(([format, count]) => `${count} ${format}`).join("\n");
}
