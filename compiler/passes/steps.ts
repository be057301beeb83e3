/**
 * What of a graph runs in a step. Decoded tokens run all of it. On a CPU alone so do prompts, and without corrections its
 * executor leaves their instructions out of one lane. With a GPU other nodes mean other lanes, so they are graphs of their own:
 *
 *   off            the backbone alone
 *   none           a prompt without the corrections of the GPU's windows; those of spilled layers are as on a CPU
 *   cpu, stream    a prompt with their factors, on the CPU or on the GPU; rows are whole residuals, added by the linears
 *
 * All of them lie in one arena: `layout` keeps apart what any of them uses at the same time.
 */
import { type Graph, type Node, usesGpu, windowOf } from "../ir/graph.ts";
import { CORRECTION_OPS, DECODE_OPS } from "../ir/ops.ts";
import type { CorrectionPlan } from "../plan.ts";

export type StepForm = "decode" | "off" | CorrectionPlan["prefill"];
const FORMS: readonly StepForm[] = ["decode", "off", "none", "cpu", "stream"];

/** The nodes of a step of a scheduled graph, each on the device on which it runs then. */
export function stepGraph(graph: Graph, form: StepForm): Graph {
  if (form === "decode" || !usesGpu(graph)) return graph;
  if (form === "off") return withoutCorrections(graph);
  const windows = new Set(
    graph.nodes.flatMap((node) =>
      node.op === "linear" && node.placement.device === "gpu" ? [node.params.window] : []
    ),
  );
  const isOfGpu = (node: Node) => CORRECTION_OPS.has(node.op) && windows.has(windowOf(node));
  const left = without(graph, (node) => isOfGpu(node) && (form === "none" || DECODE_OPS.has(node.op)));
  if (form !== "stream") return left;
  return { ...left, nodes: left.nodes.map((node) => isOfGpu(node) ? onGpu(node) : node) };
}

/** All that differ. */
export function stepGraphs(graph: Graph): readonly Graph[] {
  if (!usesGpu(graph)) return [graph];
  const hasFactors = graph.nodes.some((node) => node.op === "low_rank_up");
  const hasCorrections = graph.nodes.some((node) => CORRECTION_OPS.has(node.op));
  const forms = FORMS.filter((form) =>
    form === "decode" || (hasCorrections && (hasFactors || form === "off" || form === "none"))
  );
  return forms.map((form) => stepGraph(graph, form));
}

function onGpu(node: Node): Node {
  return { ...node, placement: { ...node.placement, device: "gpu", lane: "backbone" } };
}

/** The backbone alone, on whatever devices. */
export function withoutCorrections(graph: Graph): Graph {
  return without(graph, (node) => CORRECTION_OPS.has(node.op));
}

/** Only deltas may be left out: who adds them goes on without. */
function without(graph: Graph, isLeftOut: (node: Node) => boolean): Graph {
  const gone = new Set(graph.nodes.filter(isLeftOut).flatMap((node) => node.outputs.map((v) => v.name)));
  const nodes = graph.nodes.filter((node) => !isLeftOut(node)).map((node): Node =>
    node.added === undefined
      ? node
      : { ...node, added: node.added.map((deltas) => deltas.filter((delta) => !gone.has(delta))) }
  );
  return { ...graph, nodes };
}
