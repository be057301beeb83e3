/** Changes of plans that leave a graph of right types: what only the checks behind the types can find. */
import type { Node } from "../../compiler/ir/graph.ts";
import { typeText } from "../../compiler/ir/types.ts";
import type { Plan } from "../../compiler/plan.ts";
import type { Random } from "./random.ts";

type Rewiring = (plan: Plan, random: Random) => Plan;

const withNodes = (plan: Plan, nodes: readonly Node[]): Plan => ({
  ...plan,
  graph: { ...plan.graph, nodes },
});

/** A node reads another value of the same type that is made before it. */
const otherInput: Rewiring = (plan, random) => {
  const { nodes, inputs } = plan.graph;
  const at = random.below(nodes.length);
  const node = nodes[at];
  if (node === undefined || node.inputs.length === 0) return plan;
  const made = [...inputs, ...nodes.slice(0, at).flatMap((n) => n.outputs)];
  const slot = random.below(node.inputs.length);
  const type = made.find((value) => value.name === node.inputs[slot])?.type;
  const alike = made.filter((value) => type && typeText(value.type) === typeText(type));
  if (alike.length === 0) return plan;
  const read = node.inputs.map((name, i) => i === slot ? random.pick(alike).name : name);
  return withNodes(plan, nodes.map((n, i) => i === at ? { ...n, inputs: read } : n));
};

/** Two nodes of one op exchange their parameters: paths, windows, layers. */
const exchangedParameters: Rewiring = (plan, random) => {
  const { nodes } = plan.graph;
  const one = random.pick(nodes);
  const other = random.pick(nodes.filter((node) => node.op === one.op));
  // Of the same op, which the type checker cannot see.
  const given = (node: Node, params: Node["params"]): Node => Object.assign({}, node, { params });
  return withNodes(
    plan,
    nodes.map((n) => n === one ? given(n, other.params) : n === other ? given(n, one.params) : n),
  );
};

/** A node runs once more, on a value of any width, under new names and with the parameters of the first. */
const again: Rewiring = (plan, random) => {
  const { nodes } = plan.graph;
  const node = random.chance(0.3)
    ? random.pick(nodes.slice(-1)) // the head, which no window keeps from being there twice
    : random.pick(nodes.filter((n) => n.op === "rms_norm" || n.op === "linear" || n.op === "silu"));
  const values = nodes.flatMap((n) => n.outputs).filter((value) => value.type.shape.length === 2);
  const x = random.pick(values);
  const outputs = node.outputs.map(({ name, type }) => ({
    name: `${name}_again${nodes.length}`,
    type: node.op === "linear" ? type : x.type,
  }));
  const lanes = plan.lanes.map((lane) =>
    lane.lane === "backbone" ? { ...lane, steps: [...lane.steps, { run: nodes.length }] } : lane
  );
  const result = withNodes(plan, [...nodes, { ...node, inputs: [x.name], outputs }]);
  return {
    ...result,
    lanes,
    graph: { ...result.graph, outputs: random.chance(0.5) ? outputs.map((v) => v.name) : plan.graph.outputs },
  };
};

/** An intermediate value is an output of the graph, alone or beside the logits. */
const otherOutput: Rewiring = (plan, random) => {
  const name = random.pick(plan.graph.nodes.flatMap((node) => node.outputs)).name;
  const outputs = random.chance(0.5) ? [name] : [...plan.graph.outputs, name];
  return { ...plan, graph: { ...plan.graph, outputs } };
};

/** A merge is of fewer sections or deltas, and who read the others reads them unmerged. */
const smallerMerge: Rewiring = (plan, random) => {
  const { nodes } = plan.graph;
  const merges = nodes.filter((node) => node.op === "merge");
  if (merges.length === 0) return plan;
  const merge = random.pick(merges);
  if (merge.op !== "merge") return plan;
  const kept = 1 + random.below(merge.outputs.length);
  const unmerged = new Map(
    merge.outputs.slice(kept).map((v, i) => [v.name, merge.inputs[kept + i] ?? v.name]),
  );
  const deltas = merge.inputs.slice(merge.outputs.length);
  const total = merge.outputs.slice(0, kept)
    .reduce((sum, { type }) => sum + 16 * Math.ceil(Number(type.shape[1]) / 16), 0);
  return withNodes(
    plan,
    nodes.map((node): Node => {
      if (node === merge) {
        return {
          ...merge,
          inputs: [...merge.inputs.slice(0, kept), ...deltas],
          outputs: merge.outputs.slice(0, kept),
        };
      }
      if (node.op === "low_rank" && node.params.window === merge.params.window) {
        return { ...node, params: { ...node.params, outputs: total }, outputs: resized(node, total) };
      }
      if (node.op === "sparse_residual" && node.params.window === merge.params.window) {
        return { ...node, params: { ...node.params, outputs: total }, outputs: resized(node, total) };
      }
      return { ...node, inputs: node.inputs.map((name) => unmerged.get(name) ?? name) };
    }),
  );
};

function resized(node: Node, width: number): Node["outputs"] {
  return node.outputs.map(({ name, type }) => ({ name, type: { ...type, shape: ["T", width] } }));
}

/** Two entries exchange the tensor, the name or the sizes they stand for. */
const exchangedEntries: Rewiring = (plan, random) => {
  const [a, b] = [random.below(plan.weights.length), random.below(plan.weights.length)];
  const [one, other] = [plan.weights[a], plan.weights[b]];
  if (one === undefined || other === undefined) return plan;
  const weights = plan.weights.map((w, i) =>
    i === a ? { ...w, tensor: other.tensor } : i === b ? { ...w, tensor: one.tensor } : w
  );
  return { ...plan, weights };
};

const REWIRINGS: Readonly<Record<string, Rewiring>> = {
  otherInput,
  exchangedParameters,
  again,
  otherOutput,
  smallerMerge,
  exchangedEntries,
};

/** Does one of them, and says which. */
export function rewire(plan: Plan, random: Random): readonly [plan: Plan, change: string] {
  const [name, change] = random.pick(Object.entries(REWIRINGS));
  return [change(plan, random), name];
}
