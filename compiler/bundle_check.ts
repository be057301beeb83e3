/**
 * Whether a plan and the weights beside it fit together: what an executor takes for granted and cannot see in one
 * instruction. Names stand for one thing each (a weight, a window's store, a lane), tensors have the plan's types and
 * shapes, and a window's corrections are those of its linear. That no instruction reaches outside its memory is checked
 * once more where the memory is known, when native code binds a program.
 */
import { isDeepStrictEqual } from "node:util";
import { type Node, usesGpu, values, windowOf } from "./ir/graph.ts";
import { packedName } from "./ir/naming.ts";
import { isLowered, verify } from "./ir/verify.ts";
import { layout } from "./passes/layout.ts";
import { makeLanes } from "./passes/schedule.ts";
import type { Plan, WindowStore } from "./plan.ts";
import { factorStride, RESIDUAL_WIDTHS, residualShape } from "./weights/correction.ts";
import { formatText, packedShape } from "./weights/format.ts";
import { inventory } from "./weights/inventory.ts";
import type { TensorDType, TensorView } from "./weights/safetensors.ts";

/** A model of a hundred layers has some 2,500 nodes. Checking so many takes 2 s at worst. */
const MOST_NODES = 20_000;
/** Of all rotation tables: a model has one or two of 64. Every position of the context has a cosine and a sine of each. */
const MOST_FREQUENCIES = 1024;
/** Tokens, positions and rows. */
const INPUTS = 3;

/** What is wrong with a plan's graph and lanes, or undefined. */
export function checkGraph({ graph, lanes, memory, corrections }: Plan): string | undefined {
  try {
    // Before anything that grows with the square of their number.
    if (graph.nodes.length > MOST_NODES) {
      return `its graph has ${graph.nodes.length} nodes, at most ${MOST_NODES}`;
    }
    const frequencies = graph.ropes.reduce((sum, table) => sum + table.frequencies.length, 0);
    if (frequencies > MOST_FREQUENCIES) {
      return `its rotation tables have ${frequencies} frequencies, at most ${MOST_FREQUENCIES}`;
    }
    if (graph.inputs.length !== INPUTS) return `its graph has ${graph.inputs.length} inputs, not ${INPUTS}`;
    verify(graph);
    if (!isLowered(graph.stage)) return `its graph is at stage ${graph.stage}, which nothing runs`;
    if (!isDeepStrictEqual(lanes, makeLanes(graph))) return "its lanes are not those of its graph";
    if (!isDeepStrictEqual(memory, layout(graph))) return "its memory is not laid out for its graph";
    const { threads, compensationThreads } = corrections;
    if (usesGpu(graph) ? compensationThreads !== threads : compensationThreads >= threads) {
      return `its lanes have ${compensationThreads} of ${threads} threads for corrections, which does not fit its devices`;
    }
    const hasRows = graph.nodes.some((node) =>
      node.op === "linear" && node.placement.device === "gpu" && node.params.residual !== undefined
    );
    if (corrections.prefill === "cpu" && hasRows) {
      return "its prompts have rows from the CPU for the GPU, which nothing computes";
    }
    return undefined;
  } catch (error) {
    // A graph that is not even shaped like one.
    return `its graph is not sound: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** The first thing that does not fit of a plan that `checkGraph` passes, or undefined. */
export function checkTensors(plan: Plan, tensors: ReadonlyMap<string, TensorView>): string | undefined {
  try {
    const lacks = (name: string, dtype: TensorDType, ...shape: number[]): string[] => {
      const found = tensors.get(name);
      const expected = `${dtype} [${shape}]`;
      if (found === undefined) return [`the tensor ${name}, ${expected}, is missing`];
      const text = `${found.dtype} [${found.shape}]`;
      if (text !== expected) return [`the tensor ${name} is ${text}, the plan expects ${expected}`];
      return found.bytes.byteOffset % ALIGNMENT === 0 ? [] : [`the tensor ${name} is not aligned`];
    };
    return [
      ...checkVocabulary(plan),
      ...checkNames(plan),
      ...checkWidths(plan),
      ...checkWeights(plan, lacks),
      ...plan.windows.flatMap((window) => checkWindow(window, lacks)),
      ...checkCorrections(plan),
    ][0];
  } catch (error) {
    return `its plan is not sound: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** What kernels may assume of a tensor's address; the mapping itself starts at a page. */
const ALIGNMENT = 64;

type Lacks = (name: string, dtype: TensorDType, ...shape: number[]) => string[];

/** Token ids are checked against the model's vocabulary, and logits are as many. */
function checkVocabulary({ graph, model: { vocabularySize } }: Plan): string[] {
  const types = values(graph);
  const rows = graph.nodes.flatMap((n) => n.op === "embedding" ? [n.params.rows] : []);
  const logits = graph.outputs.map((name) => types.get(name)?.type.shape.at(-1));
  const odd = [...rows, ...logits].find((n) => n !== vocabularySize);
  return odd === undefined
    ? []
    : [`its vocabulary is ${vocabularySize} in the model and ${odd} in the graph`];
}

/** Entries that stand for one thing are there once: executors look them up by different names. */
function checkNames({ weights, windows }: Plan): string[] {
  const tensor = duplicate(weights.map((weight) => weight.tensor));
  if (tensor !== undefined) return [`two packed weights are in the tensor ${tensor}`];
  const odd = weights.find((weight) => weight.tensor !== `${packedName(weight.sections)}.packed`);
  if (odd !== undefined) {
    return [`the packed weight ${packedName(odd.sections)} is in the tensor ${odd.tensor}`];
  }
  const window = duplicate(windows.map((store) => store.window));
  return window === undefined ? [] : [`window ${window} is stored twice`];
}

/** A matrix (a tied head) or a norm that is used twice has the same inputs both times. */
function checkWidths({ graph }: Plan): string[] {
  const types = values(graph);
  const seen = new Map<string, number>();
  return graph.nodes.flatMap((node) => {
    const input = types.get(node.inputs[0] ?? "")?.type.shape.at(-1);
    return widthsOf(node, typeof input === "number" ? input : 0).flatMap(([name, width]) => {
      const before = seen.get(name) ?? width;
      seen.set(name, before);
      return before === width ? [] : [`${name} is used at the widths ${before} and ${width}`];
    });
  });
}

/** The weights that a node reads whose first input is `input` wide, and how wide they are. */
function widthsOf(node: Node, input: number): (readonly [name: string, width: number])[] {
  switch (node.op) {
    case "embedding":
      return [[node.params.path, node.params.width]];
    case "linear":
      return [[packedName(node.params.weights), input]];
    case "rms_norm":
      return [[`${node.params.path}.weight`, node.params.headDim ?? input]];
    case "add_rms_norm":
      return [[`${node.params.path}.weight`, input]];
    case "append": {
      const { qNorm, kNorm, headDim } = node.params;
      return [qNorm, kNorm].flatMap((norm) => norm ? [[`${norm.path}.weight`, headDim]] : []);
    }
    default: // no other op has weights of the checkpoint
      return [];
  }
}

function checkWeights(plan: Plan, lacks: Lacks): string[] {
  const { matrices, vectors } = inventory(plan.graph);
  const lengths = [...vectors.values()].map(({ path, length }) => [`${path}.weight`, length]);
  if (!isDeepStrictEqual(plan.vectors, Object.fromEntries(lengths))) {
    return ["its vectors are not those of its graph"];
  }
  const weights = new Map(plan.weights.map((w) => [w.sections.map((s) => s.path).join("+"), w]));
  if (plan.weights.length !== matrices.length) {
    return [`the plan has ${plan.weights.length} packed weights, its graph reads ${matrices.length}`];
  }
  return [
    ...matrices.flatMap((matrix): string[] => {
      const { name, sections, rows, inputs, format } = matrix;
      const weight = weights.get(sections.map((s) => s.path).join("+"));
      if (format === undefined || weight === undefined) return [`the plan has no packed weight ${name}`];
      const firstRows = weight.sections.map((s) => s.firstRow).join();
      const { bytes } = packedShape(format, rows, inputs);
      const same = weight.format === formatText(format) && weight.rows === rows && weight.inputs === inputs &&
        weight.bytes === bytes && firstRows === matrix.firstRows.join() &&
        weight.sections.every((s, i) => s.rows === sections[i]?.outputs);
      if (!same) {
        return [`the packed weight ${name} is not the graph's ${formatText(format)} [${rows},${inputs}]`];
      }
      return lacks(weight.tensor, "U8", bytes);
    }),
    ...[...vectors.values()].flatMap(({ path, length }) => lacks(`${path}.weight`, "F32", length)),
  ];
}

function checkWindow(store: WindowStore, lacks: Lacks): string[] {
  const { window, inputs, outputs, residual, factors } = store;
  const problems: string[] = [];
  if (residual !== null) {
    const width = RESIDUAL_WIDTHS.find((w) => w === residual.width);
    if (width === undefined) return [`window ${window} has residuals of ${residual.width} bits`];
    problems.push(
      ...lacks(`${window}.residual.codes`, "U8", inputs, residualShape(width, outputs).rowBytes),
      ...lacks(`${window}.residual.output_scale`, "F32", outputs),
      ...lacks(`${window}.residual.channel_scale`, "F32", inputs),
      ...lacks(`${window}.residual.norm`, "F32", inputs),
    );
  }
  if (factors !== null) {
    const dtype = factors.dtype === "i8" ? "I8" : "BF16";
    problems.push(
      ...lacks(`${window}.factors.a`, dtype, factors.maxRank, factorStride(inputs)),
      ...lacks(`${window}.factors.b`, dtype, factors.maxRank, factorStride(outputs)),
      ...["a_scale", "b_scale", "spectrum"].flatMap((name) =>
        lacks(`${window}.factors.${name}`, "F32", factors.maxRank)
      ),
    );
  }
  return problems;
}

/** Every correction uses what its window stores; that it is of its window's linear, `verify` has seen. */
function checkCorrections({ graph, windows }: Plan): string[] {
  const stores = new Map(windows.map((store) => [store.window, store]));
  const matrices = new Map(inventory(graph).matrices.map((matrix) => [matrix.window, matrix]));
  return graph.nodes.flatMap((node): string[] => {
    const hasResidual = node.op === "linear" && node.params.residual !== undefined;
    const window = hasResidual ? node.params.window : windowOf(node);
    if (window === undefined) return [];
    const [store, matrix] = [stores.get(window), matrices.get(window)];
    const fits = store !== undefined && store.inputs === matrix?.inputs && store.outputs === matrix.rows &&
      isStored(node, store);
    return fits ? [] : [`the correction of window ${window} is not what the bundle stores`];
  });
}

function isStored(node: Node, { residual, factors }: WindowStore): boolean {
  switch (node.op) {
    case "linear":
      return residual !== null && residual.width === node.params.residual;
    case "sparse_select":
    case "sparse_sum":
      return residual !== null && residual.width === node.params.width;
    case "low_rank_down":
    case "low_rank_up":
      return factors !== null && factors.dtype === node.params.dtype && node.params.rank <= factors.maxRank;
    default:
      return false;
  }
}

/** The first of `names` that is there before. */
function duplicate(names: readonly string[]): string | undefined {
  const seen = new Set<string>();
  return names.find((name) => seen.size === seen.add(name).size);
}
