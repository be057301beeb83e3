/** What a plan holds, in figures: `compile` and the demo print a summary, `inspect` the tables. */
import { z } from "zod";
import type { Graph, Node, NodeOf } from "../compiler/ir/graph.ts";
import { packedName } from "../compiler/ir/naming.ts";
import { windowOf } from "../compiler/passes/schedule.ts";
import type { PackedWeight, Plan } from "../compiler/plan.ts";
import type { MeasuredLoss, Report } from "../compiler/report.ts";
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

/** "joint; rows by threshold; bytes:10%; 65536 tokens of prose.txt": what the weights were made with. */
export function madeWith({ provenance }: Plan): string {
  const made = MadeWith.parse(provenance);
  const { quantizer, options: { correct, budget, choice }, statistics, rebudgeted } = made;
  const texts = statistics?.texts.map(({ name }) => name).join(", ");
  return [
    quantizer?.split(",")[0],
    choice === undefined || correct === "low_rank" || correct === "none" ? undefined : `rows by ${choice}`,
    budget === undefined || correct === "none" ? undefined : `budget ${budgetText(budget)}`,
    rebudgeted?.from === undefined ? undefined : `compiled with ${budgetText(rebudgeted.from)}`,
    statistics === undefined ? undefined : `calibrated on ${statistics.tokens} tokens of ${texts}`,
  ].filter(Boolean).join("; ");
}

const MadeBudget = z.object({
  kind: z.string(),
  share: z.number().optional(),
  rank: z.number().optional(),
  channels: z.number().optional(),
}).optional().catch(undefined);
/** Of provenance, which is for people: what does not fit is left out. */
const MadeWith = z.object({
  quantizer: z.string().optional().catch(undefined),
  options: z.object({
    correct: z.string().optional(),
    choice: z.string().optional(),
    budget: MadeBudget,
  }).catch({}),
  statistics: z.object({ tokens: z.number(), texts: z.array(z.object({ name: z.string() })) }).optional()
    .catch(undefined),
  rebudgeted: z.object({ from: MadeBudget }).optional().catch(undefined),
});

function budgetText({ kind, share, rank, channels }: NonNullable<z.infer<typeof MadeBudget>>): string {
  if (share !== undefined) return `${kind}:${Number((100 * share).toPrecision(4))}%`;
  return [rank === undefined ? "" : `rank:${rank}`, channels === undefined ? "" : `channels:${channels}`]
    .filter(Boolean).join(",");
}

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
    const [ranks, channels] = [corrected.map((w) => w.rank), corrected.map((w) => w.channels)];
    const [factors, rows] = [Math.max(...ranks) > 0, Math.max(...channels) > 0];
    const forms = [factors ? "low_rank" : "", rows ? "sparse_residual" : ""].filter(Boolean);
    const sizes = [factors ? `rank ${range(ranks)}` : "", rows ? `${range(channels)} channels` : ""]
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
  const loss = report && lossText(report);
  if (loss !== undefined) lines.push(["loss", wrapped(loss, 12).trim()]);
  const lanes = [...predicted(graph)].map(([lane, us]) => `${lane} ${us.toFixed(0)} us`);
  lines.push(["predicted", `${lanes.join(", ")} per token`], ["mode", plan.corrections.mode]);
  return [...lines.map(([name, value]) => `${name.padEnd(12)}${value}`), wrapped(plan.corrections.cause, 12)]
    .join(
      "\n",
    );
}

/** Text in lines of 80 columns, indented. */
export function wrapped(text: string, indent: number): string {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1) ?? "";
    if (line.length + 1 + word.length > 80 - indent && line !== "") lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines.map((line) => " ".repeat(indent) + line).join("\n");
}
