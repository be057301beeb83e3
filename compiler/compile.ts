/**
 * The compiler: a checkpoint becomes a bundle. This file is the ordered list of what happens; each step is a file of
 * its own.
 *
 *   open the checkpoint, trace its model description                      weights/checkpoint.ts, frontend/
 *   compare tensors with the graph, fuse                                  weights/check_model.ts, passes/
 *   with statistics: choose formats and rows by one price of bytes        calibration/decide.ts
 *   quantize, place                                                       passes/
 *   pack weights, measure errors; with statistics fit both to its text    weights/, calibration/
 *   budget; rows beside factors are packed now that ranks are known       passes/, weights/
 *   compensate, lower, schedule, layout                                   passes/
 *   write the bundle                                                      bundle_writer.ts
 *
 * Every pass verifies its graph. Numbers depend on the checkpoint and the options alone, not on the number of
 * threads or the machine: the same model compiled twice gives the same bytes.
 *
 * Processor time is linear in the parameters: at 3 bits 0.4 s, and 16 ns a parameter to quantise, 49 to pack rows, 84
 * to factorise to rank 64 (SmolLM2 of 135 M with AVX-512: 8 s with rows, 12 s with factors; tiny-dense of 7 M: 0.9 s
 * and 1.5 s). Factorising also grows with the width of the matrices, through the Gram matrix of their smaller side:
 * twice as long a parameter at width 2304 as at 576.
 */
import { basename } from "node:path";
import manifest from "../deno.json" with { type: "json" };
import { sha256 } from "./bundle.ts";
import { decide, decidedCorrections, type Decision, hiddenBeside } from "./calibration/decide.ts";
import type { Whitening } from "./calibration/fit_factors.ts";
import { packFitted } from "./calibration/pack_fitted.ts";
import type { Choice } from "./calibration/planned.ts";
import { checkStatistics, checkWindows, type Statistics } from "./calibration/statistics.ts";
import { BundleWriter } from "./bundle_writer.ts";
import { HcinferError } from "./errors.ts";
import { MOST_TEXT_BYTES, readRegularText } from "./files.ts";
import { architectureFile, traceModel } from "./frontend/trace.ts";
import type { Graph, Stage } from "./ir/graph.ts";
import { printGraph } from "./ir/text.ts";
import { type Limits, limitsOf } from "./memory.ts";
import { type Budget, budget, checkBudget, type Correct } from "./passes/budget.ts";
import { compensate } from "./passes/compensate.ts";
import { type DeviceChoice, gpuLimit } from "./passes/devices.ts";
import { fuse } from "./passes/fuse.ts";
import { layout } from "./passes/layout.ts";
import { lower } from "./passes/lower.ts";
import { place } from "./passes/place.ts";
import { quantize } from "./passes/quantize.ts";
import { schedule } from "./passes/schedule.ts";
import { type ModelInfo, type Plan, PLAN_VERSION } from "./plan.ts";
import type { MachineProfile } from "./profile.ts";
import { type Report, reportOf } from "./report.ts";
import { checkModel } from "./weights/check_model.ts";
import { type Checkpoint, openCheckpoint } from "./weights/checkpoint.ts";
import { fileChecksum } from "./weights/checksum.ts";
import type { FactorDType, ResidualWidth } from "./weights/correction.ts";
import type { FormatKind, GroupSize } from "./weights/format.ts";
import { inventory } from "./weights/inventory.ts";
import { packAll, packBoth, tensorSpecs } from "./weights/pack.ts";
import { type Quantizer, roundToNearest } from "./weights/quantizer.ts";
import { checkpointSource, type WeightSource, type WeightTransform } from "./weights/source.ts";
import type { StoredForms } from "./weights/window.ts";

export type { Budget, Correct } from "./passes/budget.ts";

export interface CompileOptions {
  /** A checkpoint, such as a Hugging Face folder. */
  readonly model: string;
  /** The folder to write; a bundle that is there is replaced. */
  readonly output: string;
  /** Format of the layers' weights, and inputs that share a scale. */
  readonly weights: FormatKind;
  readonly group: GroupSize;
  /** Format of the embedding and the output head; default: `defaultHead`. */
  readonly head?: FormatKind;
  readonly correct: Correct;
  readonly budget: Budget;
  /** Bits of a row's codes. Default: `defaultResidualWidth`. */
  readonly residualWidth?: ResidualWidth;
  readonly factorDType: FactorDType;
  readonly maxRank: number;
  /** Changes of the weights before they are packed, in their order; default: none. */
  readonly transforms?: readonly WeightTransform[];
  /** Default: `roundToNearest`. */
  readonly quantizer?: Quantizer;
  /** Of this checkpoint (`checkStatistics`): then weights and rows are fitted to its text. */
  readonly statistics?: Statistics;
  /** How rows are chosen for a token, with statistics. Default: "threshold". */
  readonly choice?: Choice;
  /** What factors are fitted under, with statistics; without, it is "svd". Default: "full". */
  readonly whitening?: Whitening;
  /** Ends the compile: its promise is rejected with the signal's reason. Heard where there are statistics. */
  readonly signal?: AbortSignal;
  /** Where the plan is to run: "auto" (the default) is the GPU where the profile has one. */
  readonly device?: DeviceChoice;
  /** Bytes of the GPU's memory that the plan may take; default: nearly all (`usableMemory`). */
  readonly gpuMemory?: number;
  /** Tokens of the longest sequence that memory is planned for; default: `limitsOf`. */
  readonly contextLength?: number;
  /** Threads that compile. The bundle is the same for any number. */
  readonly threads: number;
  /** The machine that times are predicted for, with all its cores. */
  readonly profile: MachineProfile;
  /** Weights done, of how many, and what is next. */
  readonly onProgress?: (done: number, total: number, what: string) => void;
  /** Prints the graph after these stages. */
  readonly printAfter?: { readonly stages: readonly Stage[]; readonly sink: (text: string) => void };
}

/** What is not said otherwise: 4 bits, sparse residuals at a tenth of the backbone's bytes per token. */
export const COMPILE_DEFAULTS = {
  weights: "q4",
  group: 64,
  correct: "sparse",
  budget: { kind: "bytes", share: 0.1 },
  factorDType: "i8",
  maxRank: 64,
} as const satisfies Partial<CompileOptions>;

const DEFAULT_CHOICE: Choice = "threshold";

/** The format of embedding and head when none is asked for: 8 bits, unless nothing is to be compressed. */
export function defaultHead(weights: FormatKind): FormatKind {
  return weights === "bf16" ? "bf16" : "q8";
}

/**
 * Bits of a row's codes when none are asked for. Rows that are fitted (with statistics) make up for the rounding of each
 * other's codes, so more and coarser rows win more for the same bytes; those that are not are best in 4 bits.
 */
export function defaultResidualWidth(isFitted: boolean): ResidualWidth {
  return isFitted ? 3 : 4;
}

/** What the plan depends on. */
type PlanOptions =
  & Omit<CompileOptions, "threads">
  & Required<Pick<CompileOptions, "head" | "quantizer" | "residualWidth">>;

export interface CompileReport {
  readonly plan: Plan;
  readonly report: Report;
  readonly graphText: string;
  readonly seconds: number;
  /** Size of weights.safetensors, which is nearly all of the bundle. */
  readonly bytes: number;
}

/**
 * Compiles the model and writes its bundle. Throws HcinferError: "checkpoint" and "model-description" for the model,
 * "usage" for options that contradict each other, "environment" for a full disk or a missing native library. When it
 * throws, what was at `output` before is still there.
 */
export async function compileModel({ threads, ...given }: CompileOptions): Promise<CompileReport> {
  const start = performance.now();
  const { head = defaultHead(given.weights), quantizer = roundToNearest(threads) } = given;
  const { residualWidth = defaultResidualWidth(given.statistics !== undefined) } = given;
  const options: PlanOptions = { ...given, head, quantizer, residualWidth };
  checkBudget(options);
  using checkpoint = openCheckpoint(options.model);
  const file = architectureFile(checkpoint.config.model_type);
  const description = readRegularText(file, MOST_TEXT_BYTES, "model-description");
  const print = (graph: Graph): Graph => {
    if (options.printAfter?.stages.includes(graph.stage)) options.printAfter.sink(printGraph(graph));
    return graph;
  };

  let graph = print(await traceModel({ source: description, file, config: checkpoint.config }));
  checkModel(graph, checkpoint);
  graph = print(fuse(graph));
  const source = (options.transforms ?? []).reduce(
    (inner, transform) => transform.apply(inner, graph),
    checkpointSource(checkpoint),
  );
  if (options.statistics !== undefined) {
    checkStatistics(options.statistics, checkpoint, threads);
    checkWindows(options.statistics, graph);
  }
  const wished = await decided(graph, source, options, threads);
  graph = print(quantize(graph, { ...options, ...(wished ? { overrides: wished.formats } : {}) }));
  const limits = plannedLimits(checkpoint, options);
  graph = print(place(graph, { ...options, limits, corrections: options }));

  const decision = wished && hiddenBeside(wished, graph, options);
  const needs = inventory(graph);
  const forms = storedForms(options);
  // Ranks beside rows are known before packing, or after it.
  const isSecond = options.correct === "both" && decision === undefined;
  const early = options.correct === "both" ? decision && ranksOf(decision.windows) : undefined;
  using writer = new BundleWriter(options.output, tensorSpecs(needs, forms, early), {
    settles: isSecond,
    sources: checkpoint.files,
  });
  const packing = { ...options, source, forms, threads };
  const packed = decision === undefined
    ? packAll(needs, writer, packing)
    : await packFitted(graph, needs, writer, {
      ...packing,
      statistics: options.statistics!,
      decision,
      whitening: options.whitening ?? "full",
    });

  const known = decision === undefined ? {} : { decided: decidedCorrections(decision) };
  graph = print(budget(graph, { ...options, ...known, statistics: packed.statistics }));
  let { windows } = packed;
  if (isSecond) {
    const ranks = ranksOf(new Map(graph.budgets.map((b) => [b.window, b])));
    writer.settle(tensorSpecs(needs, forms, ranks));
    windows = packBoth(needs, writer, packing, packed, ranks);
  }
  graph = print(compensate(graph, options));
  graph = print(lower(graph, options));
  const { lanes, corrections, ...scheduled } = schedule(graph, options);
  graph = print(scheduled.graph);

  const plan: Plan = {
    version: PLAN_VERSION,
    model: modelInfo(checkpoint, graph, packed.parameters),
    graph,
    weights: packed.weights,
    vectors: Object.fromEntries(
      [...needs.vectors.values()].map(({ path, length }) => [`${path}.weight`, length]),
    ),
    windows,
    lanes,
    memory: layout(graph),
    corrections,
    provenance: provenance(options, checkpoint, description, threads),
  };
  const graphText = printGraph(graph);
  const report = reportOf(plan, packed.statistics, decision);
  writer.finish({
    plan,
    graphText,
    report,
    tokenizer: checkpoint.tokenizer,
    checksum: (path) => fileChecksum(path, threads),
  });
  return { plan, report, graphText, seconds: (performance.now() - start) / 1000, bytes: writer.bytes };
}

function ranksOf(windows: ReadonlyMap<string, { readonly rank: number }>): Map<string, number> {
  return new Map([...windows].map(([window, { rank }]) => [window, rank]));
}

/** What a calibration decides before weights are packed; nothing without statistics. */
async function decided(
  graph: Graph,
  source: WeightSource,
  options: PlanOptions,
  threads: number,
): Promise<Decision | undefined> {
  const { statistics, correct, budget, choice = DEFAULT_CHOICE, whitening = "full" } = options;
  if (statistics === undefined) {
    if (budget.kind !== "paper" || correct === "none") return undefined;
    throw new HcinferError("usage", "a budget of paper needs statistics: hcinfer calibrate writes them");
  }
  if (options.quantizer.smoothing?.isNeeded && (correct === "low_rank" || correct === "both")) {
    const asked = `${options.quantizer.name} smooths inputs`;
    throw new HcinferError("usage", `${asked}, which factors do not follow: give --correct sparse or none`);
  }
  const forms = storedForms(options), residualWidth = forms.residual?.width ?? null;
  return await decide(graph, {
    ...options,
    source,
    statistics,
    choice,
    forms,
    residualWidth,
    whitening,
    threads,
  });
}

/** What memory is planned for. */
function plannedLimits({ config, name }: Checkpoint, options: PlanOptions): Required<Limits> {
  const model = { name, contextLength: config.max_position_embeddings };
  const asked = options.contextLength === undefined ? {} : { contextLength: options.contextLength };
  const limits = limitsOf(model, asked);
  return gpuLimit(options) === undefined ? limits : limitsOf(model, asked, true);
}

/** Only what is asked for is stored. */
function storedForms({ correct, residualWidth, factorDType, maxRank }: PlanOptions): StoredForms {
  return {
    residual: correct === "sparse" || correct === "both" ? { width: residualWidth } : null,
    factors: correct === "low_rank" || correct === "both" ? { dtype: factorDType, maxRank } : null,
  };
}

function modelInfo(checkpoint: Checkpoint, graph: Graph, parameters: number): ModelInfo {
  const { config, ends } = checkpoint;
  return {
    architecture: graph.architecture,
    name: checkpoint.name,
    hiddenSize: config.hidden_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    kvHeads: config.num_key_value_heads,
    headDim: config.head_dim,
    vocabularySize: config.vocab_size,
    contextLength: config.max_position_embeddings,
    stopTokens: [...ends.stopTokens],
    bosToken: ends.bosToken,
    parameters,
  };
}

/** What the calibration was made of; of these weights, `checkStatistics` has seen. */
function statisticsSource(
  { text, provenance: { files: _, ...source } }: Statistics,
): Record<string, unknown> {
  return { ...source, tokens: text.tokens.length, window: text.window };
}

/** Where a bundle comes from: files by name and content, never by their place on a machine. */
function provenance(
  options: PlanOptions,
  checkpoint: Checkpoint,
  description: string,
  threads: number,
): Plan["provenance"] {
  const { weights, group, head, correct, budget, residualWidth, factorDType, maxRank, profile } = options;
  const { quantizer, transforms = [], statistics, choice = DEFAULT_CHOICE, whitening = "full" } = options;
  return {
    compiler: `hcinfer ${manifest.version}`,
    model: checkpoint.name,
    description: sha256(new TextEncoder().encode(description)),
    files: Object.fromEntries(
      checkpoint.weightFiles.map((file) => [basename(file), fileChecksum(file, threads)]),
    ),
    options: {
      weights,
      group,
      head,
      correct,
      budget,
      residualWidth,
      factorDType,
      maxRank,
      ...(statistics === undefined ? {} : { choice }),
      whitening: statistics === undefined ? "svd" : whitening,
    },
    quantizer: quantizer.name,
    transforms: transforms.map((t) => t.name),
    ...(statistics === undefined ? {} : { statistics: statisticsSource(statistics) }),
    profile,
  };
}
