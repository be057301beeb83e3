/**
 * How much the outputs of linears matter: their Fisher information, by one reverse pass over text.
 *
 *   F_o = mean over tokens of g_o^2,  g_o = d(sum over the window of text of -log p(label)) / d(y_o)
 *
 * in nats^2, with a label drawn for every token from the model's own prediction. So F is the diagonal of the exact Fisher
 * information, estimated with one draw a token, and half the sum over outputs of F_o E[e_o^2] predicts the KL divergence per
 * token, in nats, that small errors e of outputs cause (Amari 1998; Kunstner et al., arXiv 1905.12558, on why labels are
 * drawn and not taken from the text).
 *
 * A block of text goes forward, segment by segment (a layer each), and of each segment only what it reads from before is
 * kept; then backward, and what a segment's gradients need is computed again. Memory is bounded by the block, weights are
 * read twice a block. Everything is f32, sums over tokens are doubles in the order of the text: the results depend neither on
 * threads, nor the instruction set, nor how the text is cut into blocks.
 */
import { addSquares, sampleGradient } from "../../ffi/calibration.ts";
import { gemm, matrix, transposed } from "../../ffi/dense.ts";
import { HcinferError } from "../errors.ts";
import { type Graph, type Node, type NodeOf, values } from "../ir/graph.ts";
import { layerOf, paddedOutputs } from "../ir/naming.ts";
import type { Op } from "../ir/ops.ts";
import { elementsPerToken } from "../ir/types.ts";
import type { WeightSource } from "../weights/source.ts";
import { neededValues, Reverse } from "./backward.ts";
import { Chunk, FloatWeights, forward } from "./ops.ts";
import { uniform } from "./random.ts";
import { windowSizes } from "./statistics.ts";

type Doubles = Float64Array<ArrayBuffer>;

/** Sums over tokens of one window. */
export interface WindowSums {
  /** [outputs], padded as the window's outputs are: of g_o^2. */
  readonly fisher: Doubles;
  /** [inputs]: of x_j^2. */
  readonly inputSquare: Doubles;
  /** [inputs]: largest |x_j|. */
  readonly inputMax: Float32Array<ArrayBuffer>;
}

export interface FisherOptions {
  /** Stage "fused" or "quantized". */
  readonly graph: Graph;
  readonly source: WeightSource;
  /** Tokens of a window of text. */
  readonly window: number;
  readonly seed: number;
  readonly threads: number;
  /** Called before every segment, forward and backward: steps done of the block, of how many. May throw to end the work. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** A part of the graph that is computed together. */
interface Segment {
  readonly nodes: readonly Node[];
  /** Values it reads that earlier segments made. */
  readonly reads: readonly string[];
  /** Its nodes that make what gradients need. */
  readonly again: readonly Node[];
}

/** Most bytes of logits at a time. */
const LOGIT_BYTES = 64 * 2 ** 20;
/** Bytes that a block is to take in all, and its most windows of text. */
const BLOCK_BYTES = 2 ** 30, BLOCK_WINDOWS = 8;
/** Most bytes of weights in f32 that are kept between uses. */
const WEIGHT_BYTES = 2 ** 30;

export class FisherPass {
  readonly #options: FisherOptions;
  readonly #segments: readonly Segment[];
  readonly #weights: FloatWeights;
  readonly #weightBytes: number;
  readonly #head: NodeOf<"linear">;
  readonly sums: ReadonlyMap<string, WindowSums>;

  constructor(options: FisherOptions) {
    this.#options = options;
    const { graph, source } = options;
    this.#weights = new FloatWeights(source);
    this.#head = headOf(graph);
    this.#segments = segmentsOf(graph, this.#head);
    const types = values(graph);
    const sizes = graph.nodes.flatMap(({ op, params, inputs: [x = ""] }) =>
      op === "linear" ? params.weights.map((w) => w.outputs * elementsPerToken(types.get(x)!.type)) : []
    );
    this.#weightBytes = 4 * sizes.reduce((a, b) => a + b, 0);
    this.sums = new Map(
      [...windowSizes(graph)].map(([window, { outputs, inputs }]) => [window, {
        fisher: new Float64Array(outputs),
        inputSquare: new Float64Array(inputs),
        inputMax: new Float32Array(inputs),
      }]),
    );
  }

  /** Windows of text that a call of `add` should have: as many as the memory for them is worth. */
  get blockWindows(): number {
    const { graph, window } = this.#options;
    const types = values(graph);
    const width = (names: Iterable<string>) =>
      [...names].reduce((sum, name) => sum + elementsPerToken(types.get(name)!.type), 0);
    const kept = width(this.#segments.flatMap(({ reads }) => reads));
    // A segment's values, and as much again for their gradients.
    const made = this.#segments.map(({ nodes }) => width(nodes.flatMap((n) => n.outputs.map((v) => v.name))));
    const windowBytes = 4 * window * (kept + 2 * Math.max(...made));
    return Math.max(1, Math.min(BLOCK_WINDOWS, Math.floor(BLOCK_BYTES / windowBytes)));
  }

  /**
   * Adds what whole windows of text say to `sums`. `first` is the place of their first token in the text: labels depend on it.
   * After an error the sums are undefined.
   *
   * @throws HcinferError "checkpoint" when the model makes logits that are not finite
   */
  add(tokens: Int32Array, first: number): void {
    const { graph, window, threads, onProgress } = this.#options;
    if (tokens.length === 0 || tokens.length % window !== 0) {
      throw new RangeError(`${tokens.length} tokens are no whole windows of ${window}`);
    }
    const steps = 2 * this.#segments.length;
    const chunk = new Chunk(graph, this.#weights, tokens, window, threads);
    const [headInput = ""] = this.#head.inputs;
    const kept: Map<string, Float32Array>[] = [];
    let live = new Map<string, Float32Array>();
    for (const [i, { nodes, reads }] of this.#segments.entries()) {
      onProgress?.(i, steps);
      kept.push(subset(live, reads));
      for (const node of nodes) {
        this.#observe(node, live);
        compute(node, live, chunk);
      }
      live = subset(live, [...this.#segments.slice(i + 1).flatMap((segment) => segment.reads), headInput]);
      this.#release();
    }
    const reverse = new Reverse(chunk);
    this.#reverseHead(live.get(headInput)!, reverse, first);
    live.clear();
    for (let i = this.#segments.length - 1; i >= 0; i--) {
      onProgress?.(steps - 1 - i, steps);
      const { nodes, again } = this.#segments[i]!;
      const made = kept.pop()!;
      for (const node of again) compute(node, made, chunk);
      reverse.run(nodes, made, (node) => this.#measure(node, reverse));
      this.#release();
    }
  }

  /** Weights that the memory for them does not hold together are widened for each use. */
  #release(): void {
    if (this.#weightBytes > WEIGHT_BYTES) this.#weights.release();
  }

  /** Adds up the inputs of a window. */
  #observe(node: Node, made: ReadonlyMap<string, Float32Array>): void {
    const sums = this.#sumsOf(node);
    const x = made.get(node.inputs[0] ?? "");
    if (sums === undefined || x === undefined) return;
    addSquares(x, sums.inputSquare.length, sums.inputSquare, sums.inputMax, this.#options.threads);
  }

  /** Adds up the gradients of a window's outputs. */
  #measure(node: Node, reverse: Reverse): void {
    const sums = this.#sumsOf(node);
    if (sums === undefined || node.op !== "linear") return;
    const { firstColumn } = paddedOutputs(node.params.weights);
    node.params.weights.forEach(({ outputs }, i) => {
      const own = sums.fisher.subarray(firstColumn[i], firstColumn[i]! + outputs);
      addSquares(reverse.gradient(node.outputs[i]?.name), outputs, own, null, this.#options.threads);
    });
  }

  #sumsOf(node: Node): WindowSums | undefined {
    return node.op === "linear" ? this.sums.get(node.params.window ?? "") : undefined;
  }

  /** Labels from the logits of x, and the gradient of x; some rows at a time, as a vocabulary's logits are many. */
  #reverseHead(x: Float32Array, reverse: Reverse, first: number): void {
    const { seed, threads } = this.#options;
    const [ref] = this.#head.params.weights;
    const width = reverse.width(this.#head.inputs[0]), vocabulary = ref!.outputs;
    const weight = matrix(this.#weights.matrix(ref!, width), vocabulary, width);
    const gradient = reverse.gradient(this.#head.inputs[0]);
    const tokens = x.length / width;
    const most = Math.max(1, Math.min(tokens, Math.floor(LOGIT_BYTES / (4 * vocabulary))));
    const room = new Float32Array(most * vocabulary);
    for (let start = 0; start < tokens; start += most) {
      const rows = Math.min(most, tokens - start);
      const of = (values: Float32Array) =>
        matrix(values.subarray(start * width, (start + rows) * width), rows, width);
      const logits = room.subarray(0, rows * vocabulary);
      gemm(of(x), transposed(weight), matrix(logits, rows, vocabulary), { threads });
      const uniforms = Float64Array.from({ length: rows }, (_, r) => uniform(seed, first + start + r));
      const bad = sampleGradient(logits, uniforms, threads).indexOf(-1);
      if (bad >= 0) {
        throw new HcinferError(
          "checkpoint",
          `the model's logits at token ${first + start + bad} of the text are not finite: ` +
            "its weights hold NaN or infinity, or numbers too large for f32",
        );
      }
      gemm(matrix(logits, rows, vocabulary), weight, of(gradient), { threads });
    }
  }
}

/** The linear that makes the logits. */
export function headOf({ nodes, outputs: [logits] }: Graph): NodeOf<"linear"> {
  const head = nodes.find((node) => node.outputs.some(({ name }) => name === logits));
  if (head?.op !== "linear" || head.outputs.length !== 1) {
    throw new HcinferError(
      "model-description",
      `logits are made by ${head?.op ?? "nothing"}; a calibration needs one linear that makes them`,
    );
  }
  return head;
}

/** All nodes but the head, cut where a layer begins. */
function segmentsOf(graph: Graph, head: Node): Segment[] {
  const parts: Node[][] = [[]];
  let layer: number | undefined;
  for (const node of graph.nodes) {
    if (node === head) continue;
    // What has no weights, or none of a layer, belongs to what stands before it.
    const own = layerOfNode(node) ?? layer;
    if (layer !== undefined && own !== layer) parts.push([]);
    layer = own;
    parts.at(-1)!.push(node);
  }
  const given = new Set(graph.inputs.map(({ name }) => name));
  return parts.map((nodes) => segmentOf(nodes, given));
}

function layerOfNode({ params }: Node): number | undefined {
  const [first] = "weights" in params ? params.weights : "path" in params ? [params] : [];
  return first === undefined ? undefined : layerOf(first.path);
}

function segmentOf(nodes: readonly Node[], given: ReadonlySet<string>): Segment {
  const made = new Set(nodes.flatMap((node) => node.outputs.map(({ name }) => name)));
  const reads = new Set(
    nodes.flatMap((node) => node.inputs).filter((name) => !made.has(name) && !given.has(name)),
  );
  const needed = new Set(nodes.flatMap(neededValues));
  const again: Node[] = [];
  for (const node of nodes.toReversed()) {
    if (!node.outputs.some(({ name }) => needed.has(name))) continue;
    again.unshift(node);
    for (const name of node.inputs) needed.add(name);
  }
  return { nodes, reads: [...reads], again };
}

function compute(node: Node, values: Map<string, Float32Array>, chunk: Chunk): void {
  const outputs = forward(node as NodeOf<Op>, node.inputs.flatMap((name) => values.get(name) ?? []), chunk);
  node.outputs.forEach(({ name }, i) => values.set(name, outputs[i]!));
}

function subset(
  values: ReadonlyMap<string, Float32Array>,
  names: Iterable<string>,
): Map<string, Float32Array> {
  const found = new Map<string, Float32Array>();
  for (const name of names) {
    const value = values.get(name);
    if (value !== undefined) found.set(name, value);
  }
  return found;
}
