/**
 * fuse: work that shares its input or its pass over memory becomes one node.
 *
 * Needs: stage "traced".
 * Guarantees: stage "fused". Sibling linears of one layer that read one value are one linear with several weights, in
 *   the order of the nodes (q, k, v; gate, up); mul(silu(a), b) is silu_mul(a, b) where nothing else reads the
 *   silu; an add and the rms_norm that reads its sum are one add_rms_norm. Every linear of a layer has the name of
 *   its window, and no two the same. Values keep their names and meaning.
 * Does not: change any number that reaches an output, reorder operands of an add, or fuse into attention.
 */
import { asNode } from "../ir/build.ts";
import { consumers, type Graph, type Node, type NodeOf, producers } from "../ir/graph.ts";
import { layerOf, packedName, parentPath } from "../ir/naming.ts";
import type { WeightRef } from "../ir/ops.ts";
import { verify } from "../ir/verify.ts";

export function fuse(graph: Graph): Graph {
  const result: Graph = {
    ...graph,
    stage: "fused",
    nodes: fuseNorms(graph, fuseActivations(graph, nameWindows(fuseLinears(graph.nodes)))),
  };
  verify(result);
  return result;
}

function fuseLinears(nodes: readonly Node[]): readonly Node[] {
  const groups = new Map<string, NodeOf<"linear">[]>();
  for (const node of nodes) {
    if (node.op !== "linear") continue;
    const key = siblings(node);
    if (key === undefined) continue;
    const group = groups.get(key);
    if (group) group.push(node);
    else groups.set(key, [node]);
  }
  // All of a group stand where its first node stood: they need only the input that one needs.
  return nodes.flatMap((node) => {
    const key = node.op === "linear" ? siblings(node) : undefined;
    const group = key === undefined ? undefined : groups.get(key);
    if (group === undefined || group.length === 1) return [node];
    if (group[0] !== node) return [];
    return [asNode({
      ...group[0],
      outputs: group.flatMap((n) => n.outputs),
      params: { weights: group.flatMap((n) => n.params.weights) },
    })];
  });
}

/** Linears with the same key share a window: same input, same module, inside a layer. */
function siblings(node: NodeOf<"linear">): string | undefined {
  const path = node.params.weights[0]?.path;
  if (path === undefined || layerOf(path) === undefined) return undefined;
  return `${node.inputs[0]} ${parentPath(path)}`;
}

/** Names the windows: every linear of a layer takes the shortest of its names that no other linear shares. */
function nameWindows(nodes: readonly Node[]): readonly Node[] {
  const names = new Map<Node, readonly string[]>();
  for (const node of nodes) {
    const candidates = node.op === "linear" ? windowNames(node.params.weights) : [];
    if (candidates.length > 0) names.set(node, candidates);
  }
  for (let shared = true; shared;) {
    const count = new Map<string, number>();
    for (const [name = ""] of names.values()) count.set(name, (count.get(name) ?? 0) + 1);
    shared = false;
    for (const [node, [name = "", ...longer]] of names) {
      if (count.get(name) === 1 || longer.length === 0) continue;
      names.set(node, longer);
      shared = true;
    }
  }
  return nodes.map((node) => {
    const [window] = names.get(node) ?? [];
    return node.op !== "linear" || window === undefined
      ? node
      : asNode({ ...node, params: { ...node.params, window } });
  });
}

/**
 * Names a window may have, short to long; none outside layers. First the layer and the modules that fuse: `3.qkv`,
 * `3.gate_up`, with what is numbered inside the layer: `3.experts.7.down`. Then with every module in between:
 * `3.shared_expert.down`. Last the whole path, which only linears of one weight share.
 */
function windowNames(weights: readonly WeightRef[]): readonly string[] {
  const path = weights[0]?.path ?? "";
  const layer = layerOf(path);
  if (layer === undefined) return [];
  const modules = path.split(".").slice(0, -1);
  const inside = modules.slice(modules.findIndex(isNumber) + 1);
  const numbered = inside.filter((name, i) => isNumber(name) || isNumber(inside[i + 1] ?? ""));
  const leaves = weights.map((w) => (w.path.split(".").at(-1) ?? "").replace(/_proj$/, ""));
  const leaf = leaves.join(leaves.every((name) => name.length === 1) ? "" : "_");
  return [
    [layer, ...numbered, leaf].join("."),
    [layer, ...inside, leaf].join("."),
    `${layer}.${packedName(weights)}`,
  ];
}

function isNumber(segment: string): boolean {
  return /^\d+$/.test(segment);
}

function fuseActivations(graph: Graph, nodes: readonly Node[]): readonly Node[] {
  const view = { ...graph, nodes };
  const makers = producers(view);
  const readers = consumers(view);
  const gone = new Set<Node>();
  const fused = nodes.map((node) => {
    if (node.op !== "mul" || node.inputs[0] === node.inputs[1]) return node;
    for (const [index, name] of node.inputs.entries()) {
      const silu = makers.get(name);
      const other = node.inputs[1 - index];
      if (silu?.op !== "silu" || other === undefined) continue;
      if (readers.get(name)?.length !== 1 || graph.outputs.includes(name)) continue;
      gone.add(silu);
      return asNode({ ...node, op: "silu_mul", inputs: [...silu.inputs, other], params: {} });
    }
    return node;
  });
  return fused.filter((node) => !gone.has(node));
}

function fuseNorms(graph: Graph, nodes: readonly Node[]): readonly Node[] {
  const readers = consumers({ ...graph, nodes });
  const gone = new Set<Node>();
  const fused = nodes.map((node) => {
    const sum = node.outputs[0];
    if (node.op !== "add" || sum === undefined || sum.type.shape.length !== 2) return node;
    const norm = readers.get(sum.name)?.find((reader) => reader.op === "rms_norm");
    if (norm?.op !== "rms_norm") return node;
    gone.add(norm);
    return asNode({ ...node, op: "add_rms_norm", outputs: [sum, ...norm.outputs], params: norm.params });
  });
  return fused.filter((node) => !gone.has(node));
}
