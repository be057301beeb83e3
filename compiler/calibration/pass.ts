/**
 * The float forward pass over texts: for calibration layer by layer over all tokens, so that the weights of one layer and the
 * hidden state of all tokens are what memory must hold; and over a few texts through the whole model with every value
 * kept, for what runs backwards. Weights are f32, formats are ignored, and every text is a sequence of its own.
 */
import { setImmediate } from "node:timers/promises";
import { allFinite } from "../../ffi/dense_ops.ts";
import { HcinferError } from "../errors.ts";
import type { Graph, Node, NodeOf } from "../ir/graph.ts";
import type { Op } from "../ir/ops.ts";
import { elementsPerToken } from "../ir/types.ts";
import type { WeightSource } from "../weights/source.ts";
import { Chunk, FloatWeights, forward } from "./ops.ts";
import { isWindow, layerSegments, type Segment } from "./segments.ts";

/** Tokens that go through a layer at a time, where texts are shorter: products are then as fast as they get. */
const CHUNK_TOKENS = 4096;

/** Token ids, cut into texts of `window` tokens each; the last may be shorter. */
export interface Text {
  readonly tokens: Int32Array;
  readonly window: number;
}

export interface PassOptions {
  /** Of stage "fused" or "quantized". */
  readonly graph: Graph;
  readonly source: WeightSource;
  readonly text: Text;
  readonly threads: number;
  /** The input of a window, x [tokens, inputs], chunk after chunk in the order of tokens; valid during the call. */
  observe(window: string, x: Float32Array, tokens: number, inputs: number): void;
  /** All tokens have passed the layer of these windows. Awaited. */
  layerDone?(windows: readonly string[]): void | Promise<void>;
  /** Chunks that passed a layer, of how many, and the first window of the layer. */
  readonly onProgress?: (done: number, total: number, what: string) => void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Shows the input of every window for every token. Throws HcinferError: "input" for tokens that are none of the model's,
 * "checkpoint" for an activation that is not finite; and the signal's reason when it is aborted.
 */
export async function calibrationPass(options: PassOptions): Promise<void> {
  const { graph, text: { tokens, window }, source } = options;
  checkText(options.text);
  const segments = layerSegments(graph);
  const weights = new FloatWeights(source);
  const step = Math.max(1, Math.floor(CHUNK_TOKENS / window)) * window;
  const total = segments.length * Math.ceil(tokens.length / step);
  let done = 0;
  let hidden = new Float32Array(0);
  for (const segment of segments) {
    const width = segment.output === undefined ? 0 : elementsPerToken(segment.output.type);
    const next = hidden.length === width * tokens.length ? hidden : new Float32Array(width * tokens.length);
    for (let start = 0; start < tokens.length; start += step) {
      options.signal?.throwIfAborted();
      options.onProgress?.(done++, total, segment.windows[0] ?? "");
      const chunk = new Chunk(graph, weights, tokens.subarray(start, start + step), window, options.threads);
      const values = new Map<string, Float32Array>();
      if (segment.input !== undefined) {
        const own = hidden.length / tokens.length;
        values.set(segment.input.name, hidden.subarray(start * own, (start + chunk.tokens.length) * own));
      }
      runSegment(segment, values, chunk, start, options);
      if (segment.output !== undefined) next.set(values.get(segment.output.name)!, start * width);
      // Lets an abort arrive.
      await setImmediate();
    }
    hidden = next;
    weights.release();
    await options.layerDone?.(segment.windows);
  }
  options.onProgress?.(total, total, "");
}

export interface ChunkRun {
  readonly chunk: Chunk;
  /** Every f32 value of the graph by name, [tokens, elements a token]. */
  readonly values: ReadonlyMap<string, Float32Array>;
}

/** All values of a few texts, to the logits. Throws HcinferError("input") for tokens that are none of the model's. */
export function runChunk(graph: Graph, weights: FloatWeights, text: Text, threads: number): ChunkRun {
  checkText(text);
  const chunk = new Chunk(graph, weights, text.tokens, text.window, threads);
  const values = new Map<string, Float32Array>();
  for (const node of graph.nodes) compute(node, values, chunk);
  return { chunk, values };
}

/** Throws HcinferError("input") where there is nothing to run. */
export function checkText({ tokens, window }: Text): void {
  if (tokens.length > 0 && Number.isSafeInteger(window) && window > 0) return;
  throw new HcinferError(
    "input",
    `a calibration needs tokens in texts of at least one, found ${tokens.length} in texts of ${window}`,
  );
}

/** Computes a segment for the tokens from `start` on; of `values`, what nobody reads any more is dropped. */
function runSegment(
  { nodes, output }: Segment,
  values: Map<string, Float32Array>,
  chunk: Chunk,
  start: number,
  { observe }: PassOptions,
): void {
  const readers = new Map<string, number>();
  for (const name of nodes.flatMap((node) => node.inputs)) readers.set(name, (readers.get(name) ?? 0) + 1);
  for (const node of nodes) {
    if (isWindow(node)) {
      const x = values.get(node.inputs[0]!)!;
      checkFinite(x, node.params.window, chunk, start);
      observe(node.params.window, x, chunk.tokens.length, x.length / chunk.tokens.length);
    }
    const isRead = node.outputs.some(({ name }) => name === output?.name || readers.has(name));
    if (isRead) compute(node, values, chunk);
    for (const name of node.inputs) {
      const left = readers.get(name)! - 1;
      readers.set(name, left);
      if (left === 0 && name !== output?.name) values.delete(name);
    }
  }
}

/** Adds a node's outputs to the values it reads from. */
export function compute(node: Node, values: Map<string, Float32Array>, chunk: Chunk): void {
  const inputs = node.inputs.filter((name) => !chunk.integers.has(name)).map((name) => values.get(name)!);
  const outputs = forward(node as NodeOf<Op>, inputs, chunk);
  node.outputs.forEach(({ name }, i) => values.set(name, outputs[i]!));
}

function checkFinite(
  x: Float32Array,
  window: string,
  { tokens, window: length, threads }: Chunk,
  start: number,
): void {
  if (allFinite(x, threads)) return;
  const token = start + Math.floor(x.findIndex((v) => !Number.isFinite(v)) / (x.length / tokens.length));
  throw new HcinferError(
    "checkpoint",
    `the input of ${window} (layer and window) is not finite in f32 at token ${
      token % length
    } of calibration text ` +
      `${
        Math.floor(token / length)
      }: the checkpoint's weights are damaged, or its activations need more range`,
  );
}
