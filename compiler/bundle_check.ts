/**
 * Whether a plan and the weights beside it fit together: every size that native code computes addresses from. A
 * bundle that passes cannot make an executor read or write outside its tensors and its arena, whoever wrote it.
 */
import { isDeepStrictEqual } from "node:util";
import { values } from "./ir/graph.ts";
import { isLowered, verify } from "./ir/verify.ts";
import { layout } from "./passes/layout.ts";
import { makeLanes, windowOf } from "./passes/schedule.ts";
import type { Plan, WindowStore } from "./plan.ts";
import { factorStride, RESIDUAL_WIDTHS, residualShape } from "./weights/correction.ts";
import { formatText, packedShape } from "./weights/format.ts";
import { inventory } from "./weights/inventory.ts";
import type { TensorDType, TensorView } from "./weights/safetensors.ts";

/** What is wrong with a plan's graph and lanes, or undefined. */
export function checkGraph({ graph, lanes, memory }: Plan): string | undefined {
  try {
    verify(graph);
    if (!isLowered(graph.stage)) return `its graph is at stage ${graph.stage}, which nothing runs`;
    if (!isDeepStrictEqual(lanes, makeLanes(graph))) return "its lanes are not those of its graph";
    if (!isDeepStrictEqual(memory, layout(graph))) return "its memory is not laid out for its graph";
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

function checkWeights(plan: Plan, lacks: Lacks): string[] {
  const { matrices, vectors } = inventory(plan.graph);
  const weights = new Map(plan.weights.map((w) => [w.sections.map((s) => s.path).join("+"), w]));
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

/** Every correction node has its window's store, of its own sizes. */
function checkCorrections(plan: Plan): string[] {
  const stores = new Map(plan.windows.map((w) => [w.window, w]));
  const types = values(plan.graph);
  return plan.graph.nodes.flatMap((node): string[] => {
    const window = node.op === "linear" && node.params.residual ? node.params.window : windowOf(node);
    if (window === undefined) return [];
    const store = stores.get(window);
    const width = types.get(node.inputs[0] ?? "")?.type.shape.at(-1);
    const reads = node.op === "sparse_select" || node.op === "low_rank_down" || node.op === "linear";
    const { outputs, rank, dtype } = {
      outputs: undefined,
      rank: undefined,
      dtype: undefined,
      ...node.params,
    };
    const bits = node.op === "linear"
      ? node.params.residual
      : "width" in node.params
      ? node.params.width
      : undefined;
    const fits = store !== undefined && (!reads || store.inputs === width) &&
      (outputs === undefined || store.outputs === outputs) &&
      (bits === undefined || store.residual?.width === bits) &&
      (rank === undefined || (store.factors?.dtype === dtype && rank <= store.factors.maxRank));
    return fits ? [] : [`the correction of window ${window} is not what the bundle stores`];
  });
}
