/**
 * What a plan is predicted to do on a machine: the null executor's timelines in every mode of corrections, where the time of a
 * token goes, by kind of node and by layer, stalls, and memory. As data that JSON can hold, and as text of 80 columns.
 */
import { PREDICTED_CONTEXT } from "./cost.ts";
import { layerOf } from "./ir/naming.ts";
import { usesGpu } from "./ir/graph.ts";
import { ATTENTION_OPS, kindsOf, type PredictedKind } from "./inspect_kinds.ts";
import { CORRECTION_OPS } from "./ir/ops.ts";
import { type Part, partsOf } from "./passes/devices.ts";
import { correctionMode, type Plan } from "./plan.ts";
import { genericProfile, type MachineProfile, profileOf } from "./profile.ts";
import { type DeviceBytes, type HostBytes, type Limits, limitsOf, memoryOf } from "./memory.ts";
import { type LaneTotal, type Timeline, timelineOf } from "./timeline.ts";

export interface PredictedMode {
  readonly mode: "inline" | "async" | "off";
  readonly microseconds: number;
  readonly tokensPerSecond: number;
  readonly lanes: readonly LaneTotal[];
  readonly corrections: Timeline["corrections"];
}

/** Microseconds of a token in a layer (null: embedding, last norm and head), by what they are spent on. */
export interface PredictedLayer {
  readonly layer: number | null;
  readonly linears: number;
  readonly attention: number;
  readonly other: number;
  readonly corrections: number;
}

/** Nothing in it was measured on a run of the plan. */
export interface Prediction {
  readonly profile: string;
  /** Whether the profile's own numbers were measured on a machine. */
  readonly profileMeasured: boolean;
  readonly threads: number;
  /** Cached positions that attention reads. */
  readonly context: number;
  /** How corrections run when nothing else is asked; the plan's choice, as far as the threads allow. */
  readonly defaultMode: PredictedMode["mode"];
  readonly modes: readonly PredictedMode[];
  /** Of a token in one of the modes, what takes longest first. */
  readonly kinds: readonly PredictedKind[];
  readonly kindsMode: PredictedMode["mode"];
  /** Of a prompt's corrections; the cause says what was predicted. */
  readonly prefill: Plan["corrections"]["prefill"];
  readonly prefillCause: string;
  /** What is on the CPU beside a GPU, and why; empty on one device. */
  readonly spilled: readonly { readonly what: string; readonly cause: string }[];
  readonly layers: readonly PredictedLayer[];
  readonly memory: HostBytes;
  /** Of the GPU; null where no node is on one. */
  readonly device: DeviceBytes | null;
}

export interface PredictionOptions extends Partial<Limits> {
  /** Default: the profile the plan was compiled for. */
  readonly profile?: MachineProfile;
  readonly threads?: number;
  /** The mode of `kinds`, of those that the plan has. Default: `defaultMode`. */
  readonly kindsMode?: PredictedMode["mode"];
}

/** A step of one token in all modes. */
export function predictPlan(plan: Plan, options: PredictionOptions = {}): Prediction {
  const { profile = profileOf(plan) ?? genericProfile(1) } = options;
  const threads = options.threads ?? profile.cpu.cores;
  const timelines = (["inline", "async", "off"] as const)
    .filter((mode) => correctionMode(plan, mode, threads) === mode)
    .map((mode) => timelineOf(plan, mode, { profile, threads }));
  const memory = memoryOf(plan, limitsOf(plan.model, options, usesGpu(plan.graph)));
  const defaultMode = correctionMode(plan, "auto", threads);
  const { kindsMode = defaultMode } = options;
  return {
    profile: profile.name,
    profileMeasured: profile.measured,
    threads,
    context: PREDICTED_CONTEXT,
    defaultMode,
    modes: timelines.map(({ mode, microseconds, lanes, corrections }) => ({
      mode,
      corrections,
      microseconds,
      tokensPerSecond: microseconds > 0 ? Math.round(1e7 / microseconds) / 10 : 0,
      lanes,
    })),
    kinds: kindsOf(plan.graph, timelineOf(plan, kindsMode, { profile, threads })),
    kindsMode,
    prefill: plan.corrections.prefill,
    prefillCause: plan.corrections.prefillCause,
    spilled: spilledOf(plan),
    layers: layersOf(plan),
    memory: memory.bytes,
    device: memory.device,
  };
}

/** Backbone nodes on the CPU of a plan that uses a GPU, by what they are of: the embedding, layers, the head. */
function spilledOf({ graph }: Plan): Prediction["spilled"] {
  if (!usesGpu(graph)) return [];
  const parts = partsOf(graph);
  const found = new Map<Part, string>();
  graph.nodes.forEach(({ op, placement: { device, causes } }, i) => {
    if (device !== "cpu" || CORRECTION_OPS.has(op)) return;
    const cause = causes.find((text) => text.startsWith("cpu: "));
    if (cause !== undefined) found.set(parts[i]!, cause.slice("cpu: ".length));
  });
  return [...found].map(([part, cause]) => ({
    what: typeof part === "number" ? `layer ${part}` : `the ${part}`,
    cause,
  }));
}

/** Times of the plan's own prediction, by layer. Nodes without weights belong to the layer of the node before. */
function layersOf(plan: Plan): PredictedLayer[] {
  const spent = new Map<number | null, Record<"linears" | "attention" | "other" | "corrections", number>>();
  let layer: number | null = null;
  for (const node of plan.graph.nodes) {
    if (node.op === "linear") layer = layerOf(node.params.weights[0]?.path ?? "") ?? null;
    else if ("path" in node.params) layer = layerOf(node.params.path) ?? null;
    const sums = spent.get(layer) ?? { linears: 0, attention: 0, other: 0, corrections: 0 };
    spent.set(layer, sums);
    const kind = CORRECTION_OPS.has(node.op)
      ? "corrections"
      : node.op === "linear"
      ? "linears"
      : ATTENTION_OPS.has(node.op)
      ? "attention"
      : "other";
    sums[kind] += node.placement.microseconds ?? 0;
  }
  const rounded = (value: number) => Math.round(value * 10) / 10;
  return [...spent].map(([number, sums]) => ({
    layer: number,
    linears: rounded(sums.linears),
    attention: rounded(sums.attention),
    other: rounded(sums.other),
    corrections: rounded(sums.corrections),
  }));
}

const COLUMNS = 80;

/** Modes and memory, in text of at most `COLUMNS` columns. */
export function predictionText(prediction: Prediction): string {
  const { profile, profileMeasured, threads, context, modes, memory, defaultMode } = prediction;
  const total = Object.values(memory).reduce((sum, part) => sum + part, 0);
  const where = ` (${profileMeasured ? "measured" : "not measured"}), ${threads} thread${
    threads === 1 ? "" : "s"
  }, ${context} positions cached`;
  const lines = ["predicted for " + shortened(profile, COLUMNS - 14 - where.length) + where];
  for (const { mode, microseconds, tokensPerSecond, lanes, corrections } of modes) {
    const chosen = mode === defaultMode ? "  (default)" : "";
    lines.push(
      `  ${mode.padEnd(8)}${time(microseconds)} a token, ${rate(tokensPerSecond)} tokens/s${chosen}`,
    );
    if (mode !== "async") continue;
    for (const { lane, devices, threads, busy, stalled } of lanes) {
      const where = devices.includes("gpu") ? "gpu" : `${threads} thread${threads === 1 ? "" : "s"}`;
      lines.push(`          ${lane} (${where}): busy ${time(busy)}, waiting ${time(stalled)}`);
    }
    if (prediction.device !== null) {
      lines.push(`          corrections: ${time(corrections.busy)}, hidden ${time(corrections.hidden)}`);
    }
  }
  const { device, spilled } = prediction;
  lines.push(
    `  memory  ${bytes(total)}: weights ${bytes(memory.weights)}, corrections ${bytes(memory.corrections)},`,
    `          cache ${bytes(memory.cache)}, activations ${bytes(memory.arena)}, logits ${
      bytes(memory.logits)
    }`,
  );
  if (device !== null) {
    lines.push(
      `  gpu     ${bytes(device.total)}: weights ${bytes(device.weights)}, cache ${bytes(device.cache)},`,
      `          activations ${bytes(device.arena)}, scratch ${bytes(device.scratch + device.staging)}`,
      ...paragraph("on cpu", spilledText(spilled)),
      ...paragraph("prompts", `corrections ${prediction.prefill}: ${prediction.prefillCause}`),
    );
  }
  return lines.join("\n");
}

/** "the embedding to layer 11: layer 11 of 32 does not fit: 3.9 GiB of 4.0 GiB are taken". */
function spilledText(spilled: Prediction["spilled"]): string {
  const [first] = spilled, last = spilled.at(-1);
  if (first === undefined || last === undefined) return "";
  return `${first === last ? first.what : `${first.what} to ${last.what}`}: ${last.cause}`;
}

/** Text in lines behind a name; none where there is no text. */
function paragraph(name: string, text: string): string[] {
  if (text === "") return [];
  const lines = [`  ${name.padEnd(8)}`];
  for (const word of text.split(" ")) {
    const line = lines.at(-1)!;
    if (line.length + word.length + 1 > COLUMNS) lines.push(" ".repeat(10) + word);
    else lines[lines.length - 1] = line.length === 10 ? line + word : `${line} ${word}`;
  }
  return lines;
}

function shortened(name: string, most: number): string {
  return name.length <= most ? name : `${name.slice(0, most - 3)}...`;
}

/** Microseconds by layer; equal neighbours stand in one line: `0-27`. */
export function layersText({ layers }: Pick<Prediction, "layers">): string {
  const row = (cells: readonly string[]) =>
    "  " + cells.map((cell, i) => i === 0 ? cell.padEnd(10) : cell.padStart(13)).join("");
  const groups: { first: PredictedLayer; last: PredictedLayer }[] = [];
  const key = (l: PredictedLayer) => [l.linears, l.attention, l.other, l.corrections].join();
  for (const layer of layers) {
    const open = groups.at(-1);
    if (
      open !== undefined && open.last.layer !== null && layer.layer !== null && key(open.first) === key(layer)
    ) {
      open.last = layer;
    } else groups.push({ first: layer, last: layer });
  }
  return [
    row(["layer, us", "linears", "attention", "other", "corrections"]),
    ...groups.map(({ first, last }) => {
      const name = first.layer === null
        ? "outside"
        : first === last
        ? `${first.layer}`
        : `${first.layer}-${last.layer}`;
      const times = [first.linears, first.attention, first.other, first.corrections];
      return row([name, ...times.map((t) => t.toFixed(1))]);
    }),
  ].join("\n");
}

function rate(perSecond: number): string {
  return perSecond < 100 ? perSecond.toFixed(1) : perSecond.toFixed(0);
}

function time(microseconds: number): string {
  return microseconds < 1000 ? `${microseconds.toFixed(1)} us` : `${(microseconds / 1000).toFixed(2)} ms`;
}

function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = count;
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
