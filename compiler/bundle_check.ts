/**
 * Whether a plan and the weights beside it fit together: what an executor takes for granted and cannot see in one
 * instruction. Names stand for one thing each (a weight, a window's store, a lane), tensors have the plan's types and
 * shapes, and a window's corrections are those of its linear. That no instruction reaches outside its memory is checked
 * once more where the memory is known, when native code binds a program.
 */
import { type Graph, type Node, type NodeOf, producers, values } from "./ir/graph.ts";
import { packedName, paddedOutputs, windowName } from "./ir/naming.ts";
import { CORRECTION_OPS } from "./ir/ops.ts";
import { elementsPerToken } from "./ir/types.ts";
import { nodeText, verify } from "./ir/verify.ts";
import { verifyLanes } from "./passes/schedule.ts";
import type { LanePlan, Plan, WindowStore } from "./plan.ts";
import { factorStride, RESIDUAL_WIDTHS, residualShape, type ResidualWidth } from "./weights/correction.ts";
import { formatText, packedShape } from "./weights/format.ts";
import { inventory } from "./weights/inventory.ts";
import type { TensorDType, TensorView } from "./weights/safetensors.ts";

/** What is wrong with a plan's graph and lanes, or undefined. */
export function checkGraph({ graph, lanes }: Plan): string | undefined {
  try {
    // Before anything that grows with the square of their number.
    const problem = checkLaneNames(lanes);
    if (problem !== undefined) return problem;
    verify(graph);
    verifyLanes(graph, lanes);
    return checkLanes(graph, lanes)[0];
  } catch (error) {
    // A graph that is not even shaped like one.
    return `its graph is not sound: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** Lanes have names of their own, and one is the backbone. */
function checkLaneNames(lanes: readonly LanePlan[]): string | undefined {
  const names = lanes.map(({ lane }) => lane);
  const twice = duplicate(names);
  if (twice !== undefined) return `it has two lanes ${twice}`;
  return names.includes("backbone") ? undefined : "it has no lane backbone";
}

/** Lanes run the nodes that say so, on a device there is. */
function checkLanes(graph: Graph, lanes: readonly LanePlan[]): string[] {
  return lanes.flatMap(({ lane, steps }) =>
    steps.flatMap((step): string[] => {
      const node = "run" in step ? graph.nodes[step.run] : undefined;
      if (node === undefined) return [];
      const { device } = node.placement;
      if (device !== "cpu" && device !== "gpu") return [`${nodeText(node)} runs on no known device`];
      if (node.placement.lane !== lane) {
        return [`${nodeText(node)} runs in lane ${lane}, which is not its own`];
      }
      return CORRECTION_OPS.has(node.op) === (lane === "compensation")
        ? []
        : [`${nodeText(node)} runs in lane ${lane}: corrections, and nothing else, run beside the backbone`];
    })
  );
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
      ...checkMemory(plan),
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
  return graph.nodes.flatMap((node): string[] => {
    const input = types.get(node.inputs[0] ?? "")?.type.shape.at(-1);
    const [name, width] = node.op === "embedding"
      ? [node.params.path, node.params.width]
      : node.op === "linear"
      ? [packedName(node.params.weights), input]
      : node.op === "rms_norm" || node.op === "add_rms_norm"
      ? [`${node.params.path}.weight`, input]
      : [];
    if (name === undefined || typeof width !== "number") return [];
    const before = seen.get(name) ?? width;
    seen.set(name, before);
    return before === width ? [] : [`${name} is used at the widths ${before} and ${width}`];
  });
}

function checkWeights(plan: Plan, lacks: Lacks): string[] {
  const { matrices, vectors } = inventory(plan.graph);
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
    ...[...vectors].flatMap(([path, length]) => lacks(`${path}.weight`, "F32", length)),
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

/**
 * Every correction node is of its window's linear: it reads the same input, makes all of its outputs, and is added once, to
 * all of them. And it uses what the window stores.
 */
function checkCorrections(plan: Plan): string[] {
  const { graph } = plan;
  const stores = new Map(plan.windows.map((w) => [w.window, w]));
  const types = values(graph);
  const makers = producers(graph);
  const linears = new Map<string, NodeOf<"linear">>();
  const merges = new Map<string, NodeOf<"merge">>();
  for (const node of graph.nodes) {
    if (node.op === "linear") linears.set(windowName(node.params.weights) ?? "", node);
    if (node.op === "merge") merges.set(node.params.window, node);
  }
  const mergeProblem = (node: NodeOf<"merge">): string | undefined => {
    const { window, deltas } = node.params;
    const linear = linears.get(window);
    const first = node.inputs.length - deltas;
    if (linear?.outputs.map((v) => v.name).join() !== node.inputs.slice(0, first).join()) {
      return `the merge of window ${window} is not of all outputs of its linear`;
    }
    const makes = node.inputs.slice(first).map((name) => makers.get(name));
    const ops = makes.map((maker) =>
      isCorrection(maker) && maker.params.window === window ? maker.op : "other"
    );
    return ops.includes("other") || duplicate(ops) !== undefined
      ? `the merge of window ${window} adds something else than one correction of each form`
      : undefined;
  };
  const correctionProblem = (node: Correction): string | undefined => {
    const { window, outputs } = node.params;
    const linear = linears.get(window);
    const store = stores.get(window);
    const total = linear && paddedOutputs(linear.params.weights).total;
    if (outputs !== total || node.inputs[0] !== linear?.inputs[0]) {
      return `a correction of window ${window} is not of its linear's inputs and outputs`;
    }
    if (!node.outputs.every((delta) => merges.get(window)?.inputs.includes(delta.name))) {
      return `a correction of window ${window} is never added`;
    }
    const inputs = types.get(node.inputs[0] ?? "")?.type.shape.at(-1);
    const fits = store !== undefined && store.outputs === outputs && store.inputs === inputs &&
      (node.op === "low_rank"
        ? store.factors?.dtype === node.params.dtype && node.params.rank <= store.factors.maxRank
        : store.residual?.width === (node.params.width satisfies ResidualWidth) &&
          node.params.channels <= store.inputs);
    return fits ? undefined : `the correction of window ${window} is not what the bundle stores`;
  };
  return graph.nodes.flatMap((node) =>
    (isCorrection(node) ? correctionProblem(node) : node.op === "merge" ? mergeProblem(node) : undefined) ??
      []
  );
}

type Correction = NodeOf<"low_rank"> | NodeOf<"sparse_residual">;

function isCorrection(node: Node | undefined): node is Correction {
  return node?.op === "low_rank" || node?.op === "sparse_residual";
}

/** The first of `names` that is there before. */
function duplicate(names: readonly string[]): string | undefined {
  const seen = new Set<string>();
  return names.find((name) => seen.size === seen.add(name).size);
}

/** Values lie inside the arena; the outputs of a linear and of its merge are columns of one padded row. */
function checkMemory({ graph, memory }: Plan): string[] {
  return graph.nodes.flatMap(({ op, outputs }): string[] => {
    const row = paddedOutputs(outputs.map(({ type }) => ({ outputs: elementsPerToken(type) }))).total;
    return outputs.flatMap(({ name, type }) => {
      const offset = memory.offsets[name] ?? 0;
      const bytes = 4 * (op === "linear" || op === "merge" ? row : elementsPerToken(type));
      const inside = !Object.hasOwn(memory.offsets, name) || offset + bytes <= memory.bytesPerToken;
      return inside ? [] : [`the value ${name} lies outside the arena`];
    });
  });
}
