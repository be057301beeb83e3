/** What a plan holds, in figures: `compile` and the demo print a summary, `inspect` the tables. */
import type { Graph, Node, NodeOf } from "../compiler/ir/graph.ts";
import { packedName } from "../compiler/ir/naming.ts";
import { laplaceShare, rankCurve } from "../compiler/passes/gain.ts";
import { windowOf } from "../compiler/passes/schedule.ts";
import type { PackedWeight, Plan } from "../compiler/plan.ts";
import type { MeasuredLoss, Report } from "../compiler/report.ts";
import {
  formatFor,
  type FormatKind,
  formatText,
  packedShape,
  parseFormat,
} from "../compiler/weights/format.ts";
import { bytesText, percentText } from "./terminal.ts";

/** All bytes; "read" is per decoded token. */
export interface Figures {
  /** Packed weights that lie in windows: what corrections correct. */
  readonly backboneBytes: number;
  /** Embedding and output head. */
  readonly headBytes: number;
  readonly correctionBytesStored: number;
  readonly correctionBytesRead: number;
  /** ||E||^2 / ||W||^2 is only known by section; this is the mean of the sections, by rows. */
  readonly relativeError: number;
}

export interface Window {
  readonly name: string;
  readonly weight: PackedWeight;
  readonly linear: NodeOf<"linear">;
  readonly nodes: readonly Node[];
  readonly rank: number;
  /** Rows that a token reads, in the mean. */
  readonly channels: number;
  readonly bytesStored: number;
  readonly bytesRead: number;
  readonly cause: string;
}

/** Windows in graph order, each with its packed weight, its corrections and its budget. */
export function windows(plan: Plan): Window[] {
  const budgets = new Map(plan.graph.budgets.map((budget) => [budget.window, budget]));
  const stores = new Map(plan.windows.map((store) => [store.window, store]));
  const linears = new Map(
    plan.graph.nodes.flatMap((n) => n.op === "linear" ? [[packedName(n.params.weights), n] as const] : []),
  );
  return plan.weights.flatMap((weight) => {
    const linear = linears.get(packedName(weight.sections));
    const name = linear?.params.window;
    if (linear === undefined || name === undefined) return [];
    const nodes = plan.graph.nodes.filter((node) => windowOf(node) === name);
    const budget = budgets.get(name);
    const store = stores.get(name);
    return [{
      name,
      weight,
      linear,
      nodes,
      rank: budget?.rank ?? 0,
      channels: Number(budget?.expected?.toPrecision(3) ?? budget?.channels ?? 0),
      bytesStored: (store?.residual?.bytes ?? 0) + (store?.factors?.bytes ?? 0),
      // As budgets count them: factors and chosen rows, without the norms and scales that rows are chosen by.
      bytesRead: nodes.filter((node) => node.op !== "sparse_select")
        .reduce((sum, node) => sum + (node.placement.bytesRead ?? 0), 0),
      cause: budget?.cause ?? "",
    }];
  });
}

export function figures(plan: Plan): Figures {
  const all = windows(plan);
  const total = (of: (window: Window) => number) => all.reduce((sum, window) => sum + of(window), 0);
  const backboneBytes = total((window) => window.weight.bytes);
  const sections = all.flatMap((window) => window.weight.sections);
  const rows = sections.reduce((sum, section) => sum + section.rows, 0);
  return {
    backboneBytes,
    headBytes: plan.weights.reduce((sum, weight) => sum + weight.bytes, 0) - backboneBytes,
    correctionBytesStored: total((window) => window.bytesStored),
    correctionBytesRead: total((window) => window.bytesRead),
    relativeError: sections.reduce((sum, section) => sum + section.relativeError * section.rows, 0) /
      (rows || 1),
  };
}

/**
 * The share of a window's error that corrections are expected to leave. With statistics, of the loss that was predicted on the
 * calibration's text; without, of the error's energy, as if inputs were Laplace-distributed and alike (passes/gain.ts).
 */
export function errorLeft({ name, weight, rank, channels }: Window, report: Report): number {
  const found = report.windows.find(({ window }) => window === name);
  if (found?.predicted !== undefined) {
    const corrected = found.rebudgeted?.corrected ?? found.predicted.corrected;
    return found.predicted.alone > 0 ? Math.min(1, corrected / found.predicted.alone) : 1;
  }
  const captured = rankCurve(Float32Array.from(found?.spectrum ?? []), found?.errorEnergy ?? 0)(rank);
  return (1 - captured) * (1 - laplaceShare(channels / weight.inputs));
}

/** `Figures.relativeError` as corrections are expected to leave it. */
export function correctedError(plan: Plan, report: Report): number {
  const sections = windows(plan).flatMap((window) => {
    const left = errorLeft(window, report);
    return window.weight.sections.map(({ rows, relativeError }) => ({ rows, error: left * relativeError }));
  });
  const rows = sections.reduce((sum, section) => sum + section.rows, 0);
  return sections.reduce((sum, section) => sum + section.error * section.rows, 0) / (rows || 1);
}

/** The format that is tried when one loses too much. */
const NEXT_WIDER: { readonly [K in FormatKind]?: FormatKind } = {
  q2: "q3",
  q3: "q4",
  q4: "q8",
  q2s: "q3s",
  q3s: "q4s",
  q4s: "q8",
  q8: "bf16",
};

/**
 * What to say of a bundle whose backbone and corrections store more bytes than the same windows in the next wider format
 * without corrections. Undefined where they do not.
 */
export function storesMore(plan: Plan): string | undefined {
  const wider = windows(plan).map(({ weight }) => {
    const format = parseFormat(weight.format);
    const kind = format && NEXT_WIDER[format.kind];
    if (format === undefined || kind === undefined) return { format: weight.format, bytes: weight.bytes };
    const group = format.kind === "bf16" ? 64 : format.group;
    const next = formatFor(kind, group);
    return { format: formatText(next), bytes: packedShape(next, weight.rows, weight.inputs).bytes };
  });
  const { backboneBytes, correctionBytesStored, correctionBytesRead } = figures(plan);
  const stored = backboneBytes + correctionBytesStored;
  const bytes = wider.reduce((sum, weight) => sum + weight.bytes, 0);
  if (correctionBytesStored === 0 || stored <= bytes) return undefined;
  const formats = [...new Set(wider.map(({ format }) => format))].join(" and ");
  return `backbone and corrections store ${bytesText(stored)}, more than ${formats} without corrections ` +
    `would (${bytesText(bytes)}); a token reads ${bytesText(backboneBytes + correctionBytesRead)}`;
}

/** Predicted microseconds of a decode step, by lane. */
export function predicted(graph: Graph): Map<string, number> {
  const lanes = new Map<string, number>();
  for (const { placement } of graph.nodes) {
    const lane = placement.lane ?? "backbone";
    lanes.set(lane, (lanes.get(lane) ?? 0) + (placement.microseconds ?? 0));
  }
  return lanes;
}

function range(numbers: readonly number[]): string {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
  return least === most ? `${least}` : `${least}-${most}`;
}

/**
 * "measured KL 0.44 ± 0.01 nats a token alone, 0.085 ± 0.003 with corrections; predicted 0.41 alone, 0.08 with corrections":
 * the divergence from the uncompressed model on the calibration's text, as far as the report knows it.
 */
export function lossText(
  { measured, predicted }: Pick<Report, "measured" | "predicted">,
): string | undefined {
  const nats = (value: number) => `${Number(value.toPrecision(3))}`;
  const found = ({ mean, standardError }: MeasuredLoss["alone"]) =>
    standardError === null ? nats(mean) : `${nats(mean)} ± ${Number(standardError.toPrecision(2))}`;
  const isCorrected = measured?.corrected !== undefined || predicted?.corrected !== predicted?.alone;
  const text = (alone: string, corrected: string | undefined, unit = "") => {
    const backbone = `${alone}${unit}${isCorrected ? " alone" : ""}`;
    return isCorrected ? `${backbone}, ${corrected ?? "not measured"} with corrections` : backbone;
  };
  const unit = " nats a token";
  const guess = (unit = "") => predicted && text(nats(predicted.alone), nats(predicted.corrected), unit);
  if (measured === undefined) return predicted && `predicted KL ${guess(unit)}`;
  const { alone, corrected } = measured;
  const known = `measured KL ${text(found(alone), corrected && found(corrected), unit)}`;
  return predicted === undefined ? known : `${known}; predicted ${guess()}`;
}

/**
 * What to say of a bundle that is used without its corrections, where its backbone alone is much worse: of more than twice the
 * divergence, and by enough to be seen in text. As measured, where it was. Undefined where it is not.
 */
export function poorAlone(report: Report): string | undefined {
  const { measured, predicted } = report;
  const alone = measured?.alone.mean ?? predicted?.alone;
  const corrected = measured?.corrected?.mean ?? predicted?.corrected;
  if (alone === undefined || corrected === undefined) return undefined;
  if (!(alone > 2 * corrected && alone > POOR_NATS)) return undefined;
  return `warning: corrections are off, and this backbone is made to be corrected: ${lossText(report)} ` +
    "(on the calibration's text)";
}

/** Divergence in nats a token. */
const POOR_NATS = 0.02;

/** Some lines of "name value", for people. */
export function planSummary(plan: Plan, report?: Report): string {
  const { model, graph } = plan;
  const all = windows(plan);
  const figure = figures(plan);
  const formats = [...new Set(all.map((window) => window.weight.format))].join(", ");
  const backbone = new Set(all.map((window) => window.weight));
  const heads = plan.weights.filter((weight) => !backbone.has(weight));
  const headFormats = [...new Set(heads.map((weight) => weight.format))].join(", ");
  const lines: [string, string][] = [
    ["model", `${model.name} (${model.architecture}), ${(model.parameters / 1e6).toFixed(1)} M parameters`],
    [
      "backbone",
      `${formats} ${bytesText(figure.backboneBytes)}, embedding and head ${headFormats} ${
        bytesText(figure.headBytes)
      }`,
    ],
  ];
  const corrected = all.filter((window) => window.nodes.length > 0);
  if (corrected.length === 0) {
    lines.push(["corrections", "none"]);
  } else {
    const [ranks, rows] = [corrected.map((w) => w.rank), corrected.map((w) => w.channels)];
    const [hasFactors, hasRows] = [Math.max(...ranks) > 0, Math.max(...rows) > 0];
    const forms = [hasRows ? "rows" : "", hasFactors ? "factors" : ""].filter(Boolean);
    const sizes = [hasRows ? `${range(rows)} rows a token` : "", hasFactors ? `rank ${range(ranks)}` : ""]
      .filter(Boolean).join(", ");
    const share = figure.correctionBytesRead / figure.backboneBytes;
    lines.push(
      ["corrections", `${forms.join(" and ")} in ${corrected.length} of ${all.length} windows, ${sizes}`],
      [
        "",
        `${bytesText(figure.correctionBytesStored)} stored, ${bytesText(figure.correctionBytesRead)} ` +
        `read per token (${percentText(share)} of the backbone)`,
      ],
    );
  }
  if (report !== undefined && figure.relativeError > 0) {
    const [before, after] = [figure.relativeError, correctedError(plan, report)].map(shareText);
    const expected = corrected.length === 0 ? "" : `, about ${after} after correction`;
    lines.push(["error", `${before} of the weights' energy${expected}`]);
  }
  const loss = report && lossText(report);
  if (loss !== undefined) lines.push(["loss", wrapped(loss, 12).trim()]);
  const lanes = [...predicted(graph)].map(([lane, us]) => `${lane} ${us.toFixed(0)} us`);
  lines.push(["predicted", `${lanes.join(", ")} per token`], ["mode", plan.corrections.mode]);
  const more = storesMore(plan);
  return [
    ...lines.map(([name, value]) => `${name.padEnd(12)}${value}`),
    wrapped(plan.corrections.cause, 12),
    ...more === undefined ? [] : [`warning     ${wrapped(more, 12).trim()}`],
  ].join("\n");
}

/** `0.76 %`, with two digits that count. */
function shareText(share: number): string {
  return `${Number((100 * share).toPrecision(2))} %`;
}

/** A space that `wrapped` does not break. */
export const TIED = "\u00a0";

/** Text in lines of 80 columns, indented. */
export function wrapped(text: string, indent: number): string {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1) ?? "";
    if (line.length + 1 + word.length > 80 - indent && line !== "") lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines.map((line) => " ".repeat(indent) + line.replaceAll(TIED, " ")).join("\n");
}
