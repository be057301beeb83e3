/**
 * prompts: what a prompt's tokens have of corrections in the windows of the GPU.
 *
 * Three ways: the CPU computes them as it does for a decoded token (factors alone: rows are chosen for few tokens only),
 * residuals and factors stream through the GPU's memory while it computes the window before, or the prompt has none. A
 * prompt that is corrected fills the cache with keys and values close to the full model's, so it is, in the cheapest way,
 * unless that is out of proportion: a token of a prompt may cost `MOST_OF_A_TOKEN` of a decoded one. All times are predicted
 * for one chunk of `CHUNK` tokens on a machine's profile.
 */
import { type Cost, costs } from "../cost.ts";
import { type Graph, type Node, usesGpu, values } from "../ir/graph.ts";
import { paddedOutputs } from "../ir/naming.ts";
import { CORRECTION_OPS } from "../ir/ops.ts";
import { elementsPerToken } from "../ir/types.ts";
import type { CorrectionPlan } from "../plan.ts";
import { type GpuProfile, type MachineProfile, readBandwidth } from "../profile.ts";
import { factorBytesRead, residualShape } from "../weights/correction.ts";

const CHUNK = 512;
/** Threads of hc_copy_parts (ffi/cuda/host_copy.cpp), of half the cores. */
const MOST_COPIERS = 4;
/** A prompt eight times as long as its answer then costs no more than the answer. */
const MOST_OF_A_TOKEN = 1 / 8;

export interface PromptPlan extends Pick<CorrectionPlan, "prefill" | "prefillCause"> {
  /** Predicted microseconds of a chunk, of every way there is; absent without a GPU. */
  readonly chunk?: { readonly [P in CorrectionPlan["prefill"]]?: number };
}

/** A window whose linear is on the GPU, and what a chunk of a prompt costs there; microseconds and bytes. */
interface PromptWindow {
  readonly compute: number;
  /** Its residual and its factors, in host memory. */
  readonly bytes: number;
  /** More for the GPU when they stream: rows are added to the weight, factors multiplied. */
  readonly streamed: number;
  /** Its factors on the CPU, there and back. */
  readonly onCpu: number;
}

/** @param decoded predicted microseconds of one decoded token */
export function choosePrompts(
  graph: Graph,
  { profile, threads }: { readonly profile: MachineProfile; readonly threads: number },
  decoded: number,
): PromptPlan {
  const corrections = graph.nodes.filter((node) => CORRECTION_OPS.has(node.op));
  if (corrections.length === 0) return { prefill: "none", prefillCause: "no window has a correction" };
  const { gpu } = profile;
  if (!usesGpu(graph) || gpu === undefined) {
    return { prefill: "cpu", prefillCause: "the backbone is on the CPU, and adds whole residuals there" };
  }
  const windows = promptWindows(graph, profile, gpu, threads);
  if (windows.every(({ bytes }) => bytes === 0)) {
    return { prefill: "cpu", prefillCause: "every window that is corrected is on the CPU" };
  }
  const total = (of: (window: PromptWindow) => number) =>
    windows.reduce((sum, window) => sum + of(window), 0);
  const none = otherTime(graph, gpu) + total((w) => w.compute);
  // Threads copy from the bundle to pinned memory, which reads and writes; the link takes it from there.
  const copiers = Math.max(1, Math.min(MOST_COPIERS, Math.floor(profile.cpu.cores / 2)));
  const streamed = Math.min(1e3 * gpu.linkBandwidth, readBandwidth(profile.cpu, copiers) / 2e6);
  const link = (bytes: number) => bytes / streamed;
  // While one window computes the next one streams; the first has nobody to hide behind.
  const rest = windows.reduce((sum, w, i) => {
    return sum + Math.max(w.compute + w.streamed, link(windows[i + 1]?.bytes ?? 0));
  }, 0);
  const stream = none - total((w) => w.compute) + link(windows[0]?.bytes ?? 0) + rest;
  const hasRows = corrections.some((node) => node.op === "sparse_select");
  const cpu = none + total((w) => Math.max(0, w.onCpu - w.compute));
  const ways = hasRows ? { stream } : { cpu, stream };
  const [best, time] = Object.entries(ways).sort(([, a], [, b]) => a - b)[0]! as ["cpu" | "stream", number];
  const most = CHUNK * decoded * MOST_OF_A_TOKEN;
  const predicted = `${CHUNK} tokens are predicted to take ${milliseconds(none)} ms without, ` +
    [...hasRows ? [] : [`${milliseconds(cpu)} ms with the CPU's`], `${milliseconds(stream)} ms streamed`]
      .join(", ");
  const isWorth = time <= most;
  const verdict = isWorth ? `at most ${milliseconds(most)} ms` : `more than ${milliseconds(most)} ms`;
  return {
    prefill: isWorth ? best : "none",
    prefillCause: `${predicted}: ${verdict}, an eighth of decoding as many`,
    chunk: { none, ...ways },
  };
}

function milliseconds(microseconds: number): string {
  return `${Number((microseconds / 1000).toPrecision(3))}`;
}

const isOnGpu = (node: Node) => node.placement.device === "gpu";

/** Nodes of the GPU that are no linear with a window. */
function otherTime(graph: Graph, gpu: GpuProfile): number {
  const all = costs(graph);
  return graph.nodes.reduce((sum, node, i) => {
    const cost = all[i];
    if (cost === undefined || !isOnGpu(node) || (node.op === "linear" && node.params.window)) return sum;
    // The head makes one row of logits.
    const tokens = node.outputs[0]?.type.shape[0] === "R" ? 1 : CHUNK;
    return sum + gpuTime(gpu, cost, tokens);
  }, 0);
}

/** Weights are read once for all tokens; products are those of tensor cores. */
function gpuTime(gpu: GpuProfile, cost: Cost, tokens: number, rate?: number): number {
  const operations = rate ?? (cost.arithmetic === "int8" ? gpu.int8Rate : gpu.fp32Rate);
  const reading = cost.bytesRead / (1e3 * gpu.readBandwidth);
  return Math.max(reading, tokens * cost.operations / (1e3 * operations)) +
    cost.instructions * gpu.instructionOverhead;
}

function promptWindows(
  graph: Graph,
  { cpu }: MachineProfile,
  gpu: GpuProfile,
  threads: number,
): PromptWindow[] {
  const types = values(graph);
  const all = costs(graph);
  const ranks = new Map(
    graph.nodes.flatMap((node) =>
      node.op === "low_rank_up" ? [[node.params.window, node.params] as const] : []
    ),
  );
  return graph.nodes.flatMap((node, i): PromptWindow[] => {
    const cost = all[i];
    if (cost === undefined || node.op !== "linear" || !isOnGpu(node) || !node.params.window) return [];
    const { format, residual, window, weights } = node.params;
    const inputs = elementsPerToken(types.get(node.inputs[0] ?? "")!.type);
    const outputs = paddedOutputs(weights).total;
    const factors = ranks.get(window);
    const factorBytes = factors === undefined
      ? 0
      : factorBytesRead(factors.dtype, inputs, outputs, factors.rank);
    const residualBytes = residual === undefined ? 0 : inputs * residualShape(residual, outputs).rowBytes;
    // Rows: read, and the sum written and read at a byte an element.
    const combining = residual === undefined
      ? 0
      : (residualBytes + 2 * inputs * outputs) / (1e3 * gpu.readBandwidth) + gpu.instructionOverhead;
    const products = (factors?.rank ?? 0) * (inputs + outputs) * CHUNK;
    const applying = factors === undefined
      ? 0
      : products / (1e3 * gpu.tensorHalfRate) + 2 * gpu.instructionOverhead;
    const bandwidth = readBandwidth(cpu, threads) / 1e6;
    const cores = Math.min(threads, cpu.cores);
    return [{
      compute: gpuTime(gpu, cost, CHUNK, format?.kind === "bf16" ? gpu.tensorHalfRate : gpu.tensorInt8Rate),
      bytes: residualBytes + factorBytes,
      streamed: combining + applying,
      onCpu: factors === undefined ? 0 : 2 * gpu.linkLatency +
        4 * CHUNK * (inputs + outputs) / (1e3 * gpu.linkBandwidth) +
        Math.max(factorBytes / bandwidth, products / (1e3 * cores * cpu.fp32Rate)),
    }];
  });
}
