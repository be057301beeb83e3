/** hcinfer inspect: what a bundle will do, and why. Reads no weights, unless it is to measure. */
import { Command, Option } from "commander";
import process from "node:process";
import { openBundle, readPlan } from "../compiler/bundle.ts";
import { layersText, type Prediction, predictionText, predictPlan } from "../compiler/inspect.ts";
import { windowKind } from "../compiler/inspect_kinds.ts";
import { printGraph } from "../compiler/ir/text.ts";
import { typeText } from "../compiler/ir/types.ts";
import type { Plan } from "../compiler/plan.ts";
import type { Report } from "../compiler/report.ts";
import { replan } from "../compiler/replan.ts";
import { genericProfile, profileOf } from "../compiler/profile.ts";
import { bytes, refuse, threadsOption } from "./arguments.ts";
import { type Measured, measureKinds } from "./inspect_measure.ts";
import { rankingText } from "./inspect_ranking.ts";
import { kindTable, lossTable, windowTable } from "./inspect_windows.ts";
import { madeWith } from "./made_with.ts";
import { correctedError, figures, planSummary, type Window, windows, wrapped } from "./summary.ts";
import { bytesText, printable, Progress, table, writeOut } from "./terminal.ts";

export function inspectCommand(): Command {
  return new Command("inspect")
    .description(
      "Show where a token's time and bytes go, windows, sizes, devices, lanes and the cause of each decision.",
    )
    .argument("<bundle>", "folder that compile wrote")
    .addOption(new Option("--json", "the plan and what it is predicted to do as JSON").conflicts("graph"))
    .addOption(new Option("--graph", "the graph as text, which parses back"))
    .addOption(
      new Option("--windows", "every window and layer instead of a line a kind").conflicts(["json", "graph"]),
    )
    .addOption(
      new Option("--gpu-memory <bytes>", "show the plan for so much of the GPU's memory, like 8GiB")
        .argParser(bytes),
    )
    .addOption(
      new Option("--measure", "decode on this machine's CPU: measured times beside the predicted ones")
        .conflicts(["graph", "gpuMemory"]),
    )
    .addOption(threadsOption())
    .addHelpText(
      "after",
      `
Examples:
  hcinfer inspect bundles/tiny
  hcinfer inspect bundles/tiny --measure --threads 1
  hcinfer inspect bundles/tiny --graph > graph.py
  hcinfer inspect bundles/large --gpu-memory 8GiB
  hcinfer inspect bundles/tiny --json`,
    )
    .action(inspect);
}

interface Options {
  readonly json?: true;
  readonly graph?: true;
  readonly windows?: true;
  readonly gpuMemory?: number;
  readonly measure?: true;
  readonly threads: number;
}

function inspect(path: string, options: Options, command: Command): void {
  const { gpuMemory, threads } = options;
  if (!options.measure) refuse(command, "nothing runs without --measure", "threads");
  const { plan: stored, report: compiled } = readPlan(path);
  const plan = gpuMemory === undefined
    ? stored
    : replan(stored, { profile: profileOf(stored) ?? genericProfile(1), gpuMemory });
  if (options.graph) return writeOut(printGraph(plan.graph));
  const measured = options.measure ? measure(path, threads) : undefined;
  const prediction = measured === undefined
    ? predictPlan(plan)
    : predictPlan(plan, { threads, kindsMode: measured.mode });
  const text = options.json
    ? json(plan, compiled, prediction, measured)
    : report(plan, compiled, { prediction, measured, all: options.windows === true });
  process.stdout.write(`${printable(text)}\n`);
}

function measure(path: string, threads: number): Measured {
  using bundle = openBundle(path);
  const progress = new Progress("measure");
  try {
    return measureKinds(bundle, threads, progress.show);
  } finally {
    progress.finish();
  }
}

function json(plan: Plan, compiled: Report, prediction: Prediction, measured: Measured | undefined): string {
  const { price, measured: measuredLoss, predicted, windows } = compiled;
  // Curves and spectra are for rebudget.
  const losses = windows.map(({ rows: _, spectrum: __, ...window }) => window);
  return JSON.stringify(
    {
      ...plan,
      figures: { ...figures(plan), correctedError: correctedError(plan, compiled) },
      loss: { price, measured: measuredLoss, predicted, windows: losses },
      prediction,
      ...(measured === undefined ? {} : { measured }),
    },
    null,
    2,
  );
}

interface Shown {
  readonly prediction: Prediction;
  readonly measured: Measured | undefined;
  /** Every window and layer. */
  readonly all: boolean;
}

function report(plan: Plan, compiled: Report, { prediction, measured, all }: Shown): string {
  const { model } = plan;
  const found = windows(plan);
  const losses = lossTable(found, compiled);
  return [
    rankingText(prediction, measured),
    "",
    planSummary(plan, compiled),
    `made with   ${wrapped(madeWith(plan), 12).trim()}`,
    `geometry    ${model.layers} layers, hidden ${model.hiddenSize}, ${model.heads} heads of ${model.headDim} ` +
    `(${model.kvHeads} key-value)`,
    `            vocabulary ${model.vocabularySize}, context ${model.contextLength}`,
    "",
    all ? windowTable(found, compiled) : kindTable(found, compiled),
    ...losses === "" ? [] : ["", losses],
    "",
    "Outside windows",
    weightTable(plan, found),
    "",
    "Lanes",
    laneTable(plan),
    "",
    "Modes and memory, all predicted",
    predictionText(prediction),
    ...all ? ["", layersText(prediction)] : [],
    "",
    "Causes",
    causes(plan, found),
    "",
    "Every window: inspect --windows; every node with its own cause: inspect --graph",
  ].join("\n");
}

function weightTable(plan: Plan, all: readonly Window[]): string {
  const inWindows = new Set(all.map((window) => window.weight));
  const outside = plan.weights.filter((weight) => !inWindows.has(weight));
  return table(
    ["weight", "format", "rows", "inputs", "bytes"],
    outside.map((w) => [w.tensor, w.format, `${w.rows}`, `${w.inputs}`, bytesText(w.bytes)]),
    2,
  );
}

function laneTable(plan: Plan): string {
  const rows = plan.lanes.map((lane) => {
    const nodes = lane.steps.flatMap((step) => "run" in step ? [plan.graph.nodes[step.run]] : []);
    const meetings = lane.steps.filter((step) => !("run" in step)).length;
    const devices = [...new Set(nodes.map((node) => node?.placement.device ?? "cpu"))].join(" ");
    const microseconds = nodes.reduce((sum, node) => sum + (node?.placement.microseconds ?? 0), 0);
    return [lane.lane, devices, `${nodes.length}`, `${meetings}`, `${microseconds.toFixed(0)} us`];
  });
  const outputs = plan.graph.outputs.map((name) => {
    const value = plan.graph.nodes.flatMap((node) => node.outputs).find((output) => output.name === name);
    return value ? `${name} ${typeText(value.type)}` : name;
  });
  return [
    table(["lane", "device", "nodes", "signals and waits", "predicted"], rows, 2),
    `memory      ${bytesText(plan.memory.bytesPerToken)} of activations per token of a step`,
    `output      ${outputs.join(", ")}`,
  ].join("\n");
}

/** Causes that differ in numbers alone stand together: of budgets by the kind of window, then of placements by op. */
function causes(plan: Plan, all: readonly Window[]): string {
  const budgets = new Map<string, { kind: string; layers: number[]; causes: string[] }>();
  for (const { name, cause } of all) {
    const [layer = ""] = name.split(".");
    const kind = windowKind(name);
    const key = `${kind} ${cause.replaceAll(NUMBER, "#")}`;
    const group = budgets.get(key) ?? { kind, layers: [], causes: [] };
    budgets.set(key, {
      ...group,
      layers: [...group.layers, Number(layer)],
      causes: [...group.causes, cause],
    });
  }
  const placements = new Map<string, Map<string, number>>();
  for (const { op, placement } of plan.graph.nodes) {
    const cause = placement.causes.join("; ");
    const ops = placements.get(cause) ?? new Map<string, number>();
    placements.set(cause, ops.set(op, (ops.get(op) ?? 0) + 1));
  }
  return [
    ...[...budgets.values()].map(({ kind, layers, causes }) =>
      `${kind} of ${layers.length === 1 ? "layer" : "layers"} ${ranges(layers)}\n${
        wrapped(spread(causes), 4)
      }`
    ),
    ...[...placements].map(([cause, ops]) => {
      // A count stays on the line of its op.
      const counts = [...ops].map(([op, count]) => count === 1 ? op : `${count}_${op}`);
      return `${wrapped(counts.join(", "), 0).replaceAll(/(\d)_/g, "$1 ")}\n${wrapped(cause, 4)}`;
    }),
  ].join("\n");
}

const NUMBER = /\d+(?:\.\d+)?/g;

/** One text of several that differ in numbers alone: each number as its range. */
function spread(texts: readonly string[]): string {
  const numbers = texts.map((text) => [...text.matchAll(NUMBER)].map(([number]) => number));
  let at = 0;
  return (texts[0] ?? "").replaceAll(NUMBER, () => {
    const sorted = numbers.map((of) => of[at] ?? "").sort((a, b) => Number(a) - Number(b));
    at++;
    const [least = "", most = ""] = [sorted[0], sorted.at(-1)];
    return least === most ? least : `${least}-${most}`;
  });
}

/** `0-3, 5` for ascending numbers. */
function ranges(numbers: readonly number[]): string {
  const runs: [number, number][] = [];
  for (const n of numbers) {
    const open = runs.at(-1);
    if (open?.[1] === n - 1) open[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([first, last]) => first === last ? `${first}` : `${first}-${last}`).join(", ");
}
