/** hcinfer inspect: what a bundle will do, and why. Reads no weights. */
import { Command, Option } from "commander";
import process from "node:process";
import { readPlan } from "../compiler/bundle.ts";
import { predictionText, predictPlan } from "../compiler/inspect.ts";
import { printGraph } from "../compiler/ir/text.ts";
import { typeText } from "../compiler/ir/types.ts";
import type { Plan } from "../compiler/plan.ts";
import type { Report } from "../compiler/report.ts";
import { replan } from "../compiler/replan.ts";
import { genericProfile, profileOf } from "../compiler/profile.ts";
import { bytes } from "./arguments.ts";
import { figures, madeWith, planSummary, type Window, windows, wrapped } from "./summary.ts";
import { bytesText, printable, table, writeOut } from "./terminal.ts";

export function inspectCommand(): Command {
  return new Command("inspect")
    .description(
      "Show layers, windows, sizes, devices, lanes, predicted times and the cause of each decision.",
    )
    .argument("<bundle>", "folder that compile wrote")
    .addOption(new Option("--json", "the plan and what it is predicted to do as JSON").conflicts("graph"))
    .addOption(new Option("--graph", "the graph as text, which parses back"))
    .addOption(
      new Option("--gpu-memory <bytes>", "show the plan for so much of the GPU's memory, like 8GiB")
        .argParser(bytes),
    )
    .addHelpText(
      "after",
      `
Examples:
  hcinfer inspect bundles/tiny
  hcinfer inspect bundles/tiny --graph > graph.py
  hcinfer inspect bundles/large --gpu-memory 8GiB
  hcinfer inspect bundles/tiny --json`,
    )
    .action(inspect);
}

interface Options {
  readonly json?: true;
  readonly graph?: true;
  readonly gpuMemory?: number;
}

function inspect(path: string, { gpuMemory, ...options }: Options): void {
  const { plan: stored, report: compiled } = readPlan(path);
  const plan = gpuMemory === undefined
    ? stored
    : replan(stored, { profile: profileOf(stored) ?? genericProfile(1), gpuMemory });
  if (options.graph) writeOut(printGraph(plan.graph));
  else if (options.json) {
    const { price, measured, predicted, windows } = compiled;
    // Curves and spectra are for rebudget.
    const losses = windows.map(({ rows: _, spectrum: __, ...window }) => window);
    const loss = { price, measured, predicted, windows: losses };
    const everything = { ...plan, figures: figures(plan), loss, prediction: predictPlan(plan) };
    process.stdout.write(`${printable(JSON.stringify(everything, null, 2))}\n`);
  } else process.stdout.write(`${printable(report(plan, compiled))}\n`);
}

function report(plan: Plan, measured: Report): string {
  const { model } = plan;
  const all = windows(plan);
  return [
    planSummary(plan, measured),
    `made with   ${wrapped(madeWith(plan), 12).trim()}`,
    `geometry    ${model.layers} layers, hidden ${model.hiddenSize}, ${model.heads} heads of ${model.headDim} ` +
    `(${model.kvHeads} key-value)`,
    `            vocabulary ${model.vocabularySize}, context ${model.contextLength}`,
    "",
    windowTable(all),
    "error: ||E||^2 / ||W||^2 of the worst matrix; rows, read: per token;",
    "stored, read: bytes of corrections; us: predicted, +us: corrections.",
    ...lossTable(all, measured),
    "",
    "Outside windows",
    weightTable(plan, all),
    "",
    "Lanes",
    laneTable(plan),
    "",
    "Times, all predicted: nothing was run",
    predictionText(predictPlan(plan)),
    "",
    "Causes",
    causes(plan, all),
    "",
    "Every node and window with its own cause: inspect --graph",
  ].join("\n");
}

/** rows: channels read per token; us: predicted for the linear, +us: for its corrections. */
function windowTable(all: readonly Window[]): string {
  const head = ["window", "format", "bytes", "error", "rank", "rows", "stored", "read", "us", "+us"];
  return table(
    head,
    all.map((window) => {
      const correction = window.nodes.reduce((sum, node) => sum + (node.placement.microseconds ?? 0), 0);
      const error = Math.max(...window.weight.sections.map((section) => section.relativeError));
      return [
        window.name,
        window.weight.format,
        bytesText(window.weight.bytes),
        error.toFixed(4),
        `${window.rank}`,
        `${window.channels}`,
        bytesText(window.bytesStored),
        bytesText(window.bytesRead),
        (window.linear.placement.microseconds ?? 0).toFixed(1),
        correction.toFixed(1),
      ];
    }),
    2,
  );
}

/** What windows are predicted to lose, by their kind; nothing without a calibration. */
function lossTable(all: readonly Window[], { windows, predicted }: Report): string[] {
  if (predicted === undefined) return [];
  const kinds = new Map<string, { formats: Set<string>; sums: [number, number, number, number] }>();
  const found = new Map(windows.map((window) => [window.window, window]));
  for (const { name, weight, channels } of all) {
    const { predicted, rebudgeted } = found.get(name) ?? {};
    if (predicted === undefined) continue;
    const kind = name.replace(/^\d+\./, "");
    const { formats, sums } = kinds.get(kind) ?? { formats: new Set<string>(), sums: [0, 0, 0, 0] };
    const more = [1, predicted.alone, rebudgeted?.corrected ?? predicted.corrected, channels];
    const [count, alone, corrected, rows] = sums.map((sum, i) => sum + more[i]!);
    kinds.set(kind, { formats: formats.add(weight.format), sums: [count!, alone!, corrected!, rows!] });
  }
  const nats = (value: number) => `${Number(value.toPrecision(3))}`;
  const lines = [...kinds].map(([kind, { formats, sums: [count, alone, corrected, rows] }]) => {
    return [
      kind,
      `${count}`,
      [...formats].join(" "),
      nats(alone),
      nats(corrected),
      (rows / count).toFixed(1),
    ];
  });
  return [
    "",
    "Loss, predicted on the calibration's text: nats a token",
    table(["kind", "windows", "format", "alone", "corrected", "rows"], lines, 2),
  ];
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
    const [layer = "", kind = ""] = name.split(/\.(.*)/s);
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
