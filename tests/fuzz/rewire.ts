/** Changes of plans that leave a graph of right types: what only the checks behind the types can find. */
import type { Graph, Node } from "../../compiler/ir/graph.ts";
import { inferTypes } from "../../compiler/ir/infer.ts";
import type { Op } from "../../compiler/ir/ops.ts";
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
    ? random.pick(nodes.slice(-2)) // the head, which no window keeps from being there twice, and its norm
    : random.pick(nodes.filter((n) => n.op === "rms_norm" || n.op === "linear" || n.op === "silu"));
  const values = nodes.flatMap((n) => n.outputs).filter((value) => value.type.shape.length === 2);
  const x = random.pick(values);
  const outputs = node.outputs.map(({ name, type }) => ({
    name: `${name}_again${nodes.length}`,
    type: node.op === "linear" ? type : x.type,
  }));
  const result = withNodes(plan, [...nodes, { ...node, inputs: [x.name], outputs }]);
  return {
    ...result,
    graph: { ...result.graph, outputs: random.chance(0.5) ? outputs.map((v) => v.name) : plan.graph.outputs },
  };
};

/** An intermediate value is an output of the graph, alone or beside the logits. */
const otherOutput: Rewiring = (plan, random) => {
  const name = random.pick(plan.graph.nodes.flatMap((node) => node.outputs)).name;
  const outputs = random.chance(0.5) ? [name] : [...plan.graph.outputs, name];
  return { ...plan, graph: { ...plan.graph, outputs } };
};

/** A node adds other deltas than it did, or another node adds them. */
const otherDeltas: Rewiring = (plan, random) => {
  const { nodes } = plan.graph;
  const made = nodes.filter((n) => n.op === "low_rank_up" || n.op === "sparse_sum");
  const deltas = made.flatMap((n) => n.outputs.map((v) => v.name));
  const adding = nodes.filter((node) => node.added !== undefined);
  if (deltas.length === 0 || adding.length === 0) return plan;
  const chosen = random.pick(random.chance(0.7) ? adding : nodes);
  const slot = random.below(chosen.inputs.length);
  const before = chosen.added ?? chosen.inputs.map(() => []);
  const own = before[slot] ?? [];
  const changed = random.pick([
    own.slice(1),
    own.toReversed(),
    [random.pick(deltas)],
    [...own, random.pick(deltas)],
    random.pick(before),
  ]);
  const added = before.map((names, i) => i === slot ? changed : names);
  return withNodes(plan, nodes.map((n) => n === chosen ? { ...n, added } : n));
};

/** Nodes change places. */
const otherOrder: Rewiring = (plan, random) => {
  const nodes = [...plan.graph.nodes];
  const [node] = nodes.splice(random.below(nodes.length), 1);
  if (node === undefined) return plan;
  nodes.splice(random.below(nodes.length + 1), 0, node);
  return withNodes(plan, nodes);
};

/** A rope rotates by a table of another length, or by one of its own. */
const otherTable: Rewiring = (plan, random) => {
  const { ropes } = plan.graph;
  if (ropes.length === 0) return plan;
  const table = random.pick(ropes);
  const frequencies = random.chance(0.5) ? [...table.frequencies, 1] : table.frequencies.slice(1);
  const changed = random.chance(0.5)
    ? ropes.map((r) => r === table ? { ...r, frequencies } : r)
    : [...ropes, { ...table, name: `rope_${ropes.length}`, frequencies }];
  return { ...plan, graph: { ...plan.graph, ropes: changed } };
};

/** The types that nodes make of their inputs, as far as they make any. */
export function retyped(graph: Graph): Graph {
  const types = new Map(graph.inputs.map((value) => [value.name, value.type]));
  const nodes = graph.nodes.map((node): Node => {
    let outputs = node.outputs;
    try {
      const read = node.inputs.map((name) => types.get(name)!);
      const made = inferTypes<Op>(node.op, read, node.params);
      outputs = outputs.map((value, i) => ({ ...value, type: made[i] ?? value.type }));
    } catch { // what the checks must see
    }
    for (const { name, type } of outputs) types.set(name, type);
    return { ...node, outputs };
  });
  return { ...graph, nodes };
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
  otherDeltas,
  otherOrder,
  otherTable,
  exchangedEntries,
};

/** Does one of them, and says which. */
export function rewire(plan: Plan, random: Random): readonly [plan: Plan, change: string] {
  const [name, change] = random.pick(Object.entries(REWIRINGS));
  return [change(plan, random), name];
}
