/** hcinfer inspect: what a bundle will do, and why. Reads no weights. */
import { Command, Option } from "commander";
import process from "node:process";
import { readPlan } from "../compiler/bundle.ts";
import { typeText } from "../compiler/ir/types.ts";
import type { Plan } from "../compiler/plan.ts";
import { figures, planSummary, type Window, windows, wrapped } from "./summary.ts";
import { bytesText, table } from "./terminal.ts";

export function inspectCommand(): Command {
  return new Command("inspect")
    .description(
      "Show layers, windows, sizes, devices, lanes, predicted times and the cause of each decision.",
    )
    .argument("<bundle>", "folder that compile wrote")
    .addOption(new Option("--json", "the plan as JSON").conflicts("graph"))
    .addOption(new Option("--graph", "the graph as text, which parses back"))
    .addHelpText(
      "after",
      `
Examples:
  hcinfer inspect bundles/tiny
  hcinfer inspect bundles/tiny --graph > graph.py
  hcinfer inspect bundles/tiny --json`,
    )
    .action(inspect);
}

function inspect(path: string, options: { readonly json?: true; readonly graph?: true }): void {
  const { plan, graphText } = readPlan(path);
  if (options.graph) process.stdout.write(graphText);
  else if (options.json) {
    process.stdout.write(`${JSON.stringify({ ...plan, figures: figures(plan) }, null, 2)}\n`);
  } else process.stdout.write(`${report(plan)}\n`);
}

function report(plan: Plan): string {
  const { model } = plan;
  const all = windows(plan);
  return [
    planSummary(plan),
    `geometry    ${model.layers} layers, hidden ${model.hiddenSize}, ${model.heads} heads of ${model.headDim} ` +
    `(${model.kvHeads} key-value)`,
    `            vocabulary ${model.vocabularySize}, context ${model.contextLength}`,
    "",
    windowTable(plan, all),
    "error: ||E||^2 / ||W||^2 of the worst matrix; rows, read: per token;",
    "stored, read: bytes of corrections; us: predicted, +us: corrections.",
    "",
    "Outside windows",
    weightTable(plan, all),
    "",
    "Lanes",
    laneTable(plan),
    "",
    "Causes",
    causes(plan, all),
    "",
    "Every node with its cause: inspect --graph",
  ].join("\n");
}

/** rows: channels read per token; us: predicted for the linear, +us: for its corrections. */
function windowTable(plan: Plan, all: readonly Window[]): string {
  const head = ["window", "format", "bytes", "error", "rank", "rows", "stored", "read", "us", "+us"];
  return table(
    head,
    all.map((window) => {
      const linear = plan.graph.nodes.find((node) =>
        node.op === "linear" && node.params.weights[0]?.path === window.weight.sections[0]?.path
      );
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
        (linear?.placement.microseconds ?? 0).toFixed(1),
        correction.toFixed(1),
      ];
    }),
    2,
  );
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
    const microseconds = nodes.reduce((sum, node) => sum + (node?.placement.microseconds ?? 0), 0);
    return [lane.lane, lane.device, `${nodes.length}`, `${meetings}`, `${microseconds.toFixed(0)} us`];
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

/** The causes of budgets, each once with the windows it holds for. */
function causes(plan: Plan, all: readonly Window[]): string {
  const groups = new Map<string, string[]>();
  for (const { name, cause } of all) if (cause !== "") groups.set(cause, [...groups.get(cause) ?? [], name]);
  for (const node of plan.graph.nodes) {
    if (node.op === "low_rank" || node.op === "sparse_residual" || node.op === "merge") continue;
    const cause = node.placement.causes.join("; ");
    if (cause !== "") groups.set(cause, [...groups.get(cause) ?? [], node.outputs[0]?.name ?? node.op]);
  }
  return [...groups].map(([cause, names]) => {
    const shown = names.length > 6 ? [...names.slice(0, 6), `and ${names.length - 6} more`] : names;
    return `${wrapped(shown.join(", "), 0)}\n${wrapped(cause, 4)}`;
  }).join("\n");
}
