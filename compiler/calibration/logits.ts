/**
 * The float model's logits of some texts: what a compressed one is compared with. All texts go through the graph together,
 * node by node, so that every weight is widened once and only one is kept at a time; the logits, which are many, are made
 * text by text when they are asked for. Everything is f32; the bits depend neither on threads nor on the instruction set.
 */
import { setImmediate } from "node:timers/promises";
import type { Graph } from "../ir/graph.ts";
import type { WeightSource } from "../weights/source.ts";
import { headOf } from "./fisher.ts";
import { Chunk, FloatWeights, forward } from "./ops.ts";
import { checkText, compute, type Text } from "./pass.ts";

export interface FloatLogitsOptions {
  /** Of stage "fused" or "quantized". */
  readonly graph: Graph;
  readonly source: WeightSource;
  /** Whole texts of `window` tokens each. */
  readonly text: Text;
  readonly threads: number;
  /** Nodes done, of how many. May throw to end the work. */
  readonly onProgress?: (done: number, total: number) => void;
}

/**
 * A function of the logits of a text by its number, [window, vocabulary].
 *
 * @throws HcinferError "input" for no tokens, or tokens that are none of the model's; "model-description" when no linear
 *   makes the logits
 */
export async function floatLogits(options: FloatLogitsOptions): Promise<(text: number) => Float32Array> {
  const { graph, source, text, threads } = options;
  checkText(text);
  const head = headOf(graph);
  const nodes = graph.nodes.filter((node) => node !== head);
  const lastRead = new Map<string, number>();
  [...nodes, head].forEach(({ inputs }, i) => inputs.forEach((name) => lastRead.set(name, i)));

  const weights = new FloatWeights(source);
  const chunk = new Chunk(graph, weights, text.tokens, text.window, threads);
  const values = new Map<string, Float32Array>();
  for (const [i, node] of nodes.entries()) {
    options.onProgress?.(i, nodes.length);
    compute(node, values, chunk);
    for (const name of node.inputs) if (lastRead.get(name) === i) values.delete(name);
    weights.release();
    // Lets an abort arrive.
    await setImmediate();
  }
  const x = values.get(head.inputs[0]!)!;
  const width = x.length / text.tokens.length * text.window;
  return (index) => {
    const tokens = text.tokens.subarray(index * text.window, (index + 1) * text.window);
    const own = new Chunk(graph, weights, tokens, text.window, threads);
    return forward(head, [x.subarray(index * width, (index + 1) * width)], own)[0]!;
  };
}
