/**
 * The oracle: plain TypeScript in double precision, one rule per op, nodes in the order of the graph. It rounds
 * nothing but the logits: activations, sums and the key-value cache are doubles, weights are what their packed
 * bytes say. Every other executor is tested against it.
 *
 * It deliberately knows nothing of lanes, buffers and threads: `threads` is ignored, and corrections are either off
 * or exact ("async" and "inline" are one thing here).
 */
import {
  type Graph,
  type Node,
  type NodeOf,
  producers,
  type RopeTable,
  ropeTable,
} from "../../compiler/ir/graph.ts";
import { paddedOutputs } from "../../compiler/ir/naming.ts";
import { CORRECTION_OPS, type Op } from "../../compiler/ir/ops.ts";
import type { TensorType } from "../../compiler/ir/types.ts";
import type { ModelInfo } from "../../compiler/plan.ts";
import { checkStep, logitRows } from "../executor.ts";
import type { ExecutableBundle, Executor, ExecutorOptions, StepKind, StepRequest } from "../executor.ts";
import * as math from "./reference_math.ts";
import { bundleNumbers, type Numbers } from "./reference_numbers.ts";

/** Large enough for good blocks, small enough for the [tokens, vocabulary] logits of a step. */
const DEFAULT_CAPACITY = 64;

/** What a rule sees beside its inputs. */
interface Step {
  readonly numbers: Numbers;
  readonly as: StepKind;
  /** Of the step's first token. */
  readonly position: number;
  cache(layer: number, width: number): math.LayerCache;
  rope(table: string): RopeTable;
}

/** Inputs and outputs are [T, elements per token], whatever the value's rank; integers are doubles too. */
type Rule<P extends Op> = (
  node: NodeOf<P>,
  inputs: readonly Float64Array[],
  step: Step,
) => readonly Float64Array[];

const RULES: { readonly [P in Op]: Rule<P> } = {
  embedding: ({ params: { path, width } }, [tokens], { numbers }) => {
    const matrix = numbers.matrix(path);
    const out = new Float64Array(tokens!.length * width);
    tokens!.forEach((id, t) => out.set(matrix.subarray(id * width, (id + 1) * width), t * width));
    return [out];
  },
  linear: ({ params }, [x], { numbers }) =>
    params.weights.map(({ path, outputs }) => {
      const matrix = numbers.matrix(path);
      return math.linear(x!, matrix, matrix.length / outputs, outputs);
    }),
  rms_norm: ({ params }, [x], { numbers }) => [
    math.rmsNorm(x!, numbers.vector(params.path), params.epsilon),
  ],
  add_rms_norm: ({ params }, [a, b], { numbers }) => {
    const sum = math.add(a!, b!);
    return [sum, math.rmsNorm(sum, numbers.vector(params.path), params.epsilon)];
  },
  rope: ({ params }, [x, positions], { rope }) => {
    const { frequencies, scale } = rope(params.table);
    return [math.rope(x!, positions!, frequencies, scale)];
  },
  split_heads: (_, [x]) => [x!],
  merge_heads: (_, [x]) => [x!],
  attention: (node, [q, k, v, positions], step) => {
    const headDim = lastDim(node.outputs[0]!.type);
    const rows = positions!.length;
    const kvWidth = k!.length / rows;
    const cache = step.cache(node.params.layer, kvWidth);
    cache.write(step.position, k!, v!);
    const heads = q!.length / rows / headDim;
    const shape = { heads, kvHeads: kvWidth / headDim, headDim, scale: node.params.scale };
    return [math.attention(q!, cache, step.position, shape)];
  },
  silu: (_, [x]) => [math.silu(x!)],
  add: (_, [a, b]) => [math.add(a!, b!)],
  mul: (_, [a, b]) => [math.multiply(a!, b!)],
  silu_mul: (_, [gate, up]) => [math.multiply(math.silu(gate!), up!)],
  low_rank: ({ params: { window, rank, outputs } }, [x], { numbers }) => {
    const { a, b } = numbers.factors(window);
    const inputs = a.length / (b.length / outputs);
    const hidden = math.linear(x!, a, inputs, rank);
    const rows = hidden.length / rank;
    const delta = new Float64Array(rows * outputs);
    for (let t = 0; t < rows; t++) {
      for (let c = 0; c < rank; c++) {
        math.addScaled(delta, t * outputs, hidden[t * rank + c]!, b, c * outputs, outputs);
      }
    }
    return [delta];
  },
  sparse_residual: ({ params: { window, channels, outputs } }, [x], { numbers, as }) => {
    const { matrix, norm } = numbers.residual(window);
    const inputs = norm.length;
    if (as === "prefill") return [math.linear(x!, matrix, inputs, outputs)];
    // The rows of channels that a token does not choose count as if its x_j were zero.
    const kept = new Float64Array(x!.length);
    for (let start = 0; start < kept.length; start += inputs) {
      const own = x!.subarray(start, start + inputs);
      const scores = norm.map((n, j) => Math.abs(own[j]!) * n);
      for (const j of math.largest(scores, channels)) kept[start + j] = own[j]!;
    }
    return [math.linear(kept, matrix, inputs, outputs)];
  },
  merge: ({ params, outputs }, inputs) => {
    const merged = inputs.slice(0, outputs.length).map((y) => y.slice());
    const widths = outputs.map(({ type }) => lastDim(type));
    const { total, firstColumn } = paddedOutputs(widths.map((outputs) => ({ outputs })));
    for (const delta of inputs.slice(outputs.length, outputs.length + params.deltas)) {
      merged.forEach((y, i) => {
        for (let t = 0; t < delta.length / total; t++) {
          math.addScaled(y, t * widths[i]!, 1, delta, t * total + firstColumn[i]!, widths[i]!);
        }
      });
    }
    return merged;
  },
};

function lastDim(type: TensorType): number {
  return Number(type.shape[type.shape.length - 1]);
}

/** One node by its rule. The table is indexed by the node's own op, which the type checker cannot see. */
function apply<P extends Op>(node: NodeOf<P>, inputs: readonly Float64Array[], step: Step) {
  return (RULES[node.op] as Rule<P>)(node, inputs, step);
}

export interface ReferenceModel {
  readonly graph: Graph;
  readonly model: ModelInfo;
  readonly numbers: Numbers;
}

export class ReferenceExecutor implements Executor {
  readonly name = "reference";
  readonly model: ModelInfo;
  readonly capacity: number;
  readonly contextLength: number;
  readonly #graph: Graph;
  readonly #numbers: Numbers;
  readonly #corrections: boolean;
  readonly #head: Node;
  readonly #caches = new Map<number, math.LayerCache>();
  #cached = 0;

  constructor({ graph, model, numbers }: ReferenceModel, options: Partial<ExecutorOptions> = {}) {
    this.model = model;
    this.capacity = options.capacity ?? DEFAULT_CAPACITY;
    this.contextLength = options.contextLength ?? model.contextLength;
    this.#graph = graph;
    this.#numbers = numbers;
    this.#corrections = options.corrections !== "off";
    const head = producers(graph).get(graph.outputs[0]!);
    if (!head) throw new Error("the graph has no node that makes its output");
    this.#head = head;
  }

  step(request: StepRequest): Float32Array {
    checkStep(this, request, this.#cached);
    const { tokens, position, as, logits } = request;
    const rows = logitRows(request);
    // Whatever happens now, later positions no longer hold.
    this.#cached = position;
    const values = new Map<string, Float64Array>([
      ["tokens", Float64Array.from(tokens)],
      ["positions", Float64Array.from(tokens, (_, t) => position + t)],
    ]);
    const step: Step = {
      numbers: this.#numbers,
      as,
      position,
      cache: (layer, width) => {
        const cache = this.#caches.get(layer) ?? new math.LayerCache(width);
        this.#caches.set(layer, cache);
        return cache;
      },
      rope: (table) => ropeTable(this.#graph, table),
    };
    for (const node of this.#graph.nodes) {
      if (!this.#corrections && CORRECTION_OPS.has(node.op)) continue;
      let inputs = node.inputs.map((name) => values.get(name)).filter((value) => value !== undefined);
      if (node === this.#head) {
        if (logits === "none") continue;
        // The head works row by row: rows whose logits nobody wants are left out.
        inputs = inputs.map((x) => x.subarray((tokens.length - rows) * (x.length / tokens.length)));
      }
      const run = !this.#corrections && node.op === "merge"
        ? { ...node, params: { ...node.params, deltas: 0 } }
        : node;
      const outputs = apply(run, inputs, step);
      node.outputs.forEach((value, i) => values.set(value.name, outputs[i]!));
    }
    this.#cached = position + tokens.length;
    return logits === "none" ? new Float32Array(0) : Float32Array.from(values.get(this.#graph.outputs[0]!)!);
  }

  [Symbol.dispose](): void {
    this.#caches.clear();
  }
}

/** An executor of a bundle in double precision. Dequantised weights take 8 bytes a parameter of this process. */
export function createReferenceExecutor(
  bundle: ExecutableBundle,
  options: Partial<ExecutorOptions> = {},
): Executor {
  const { graph, model, corrections } = bundle.plan;
  const asked = options.corrections ?? "auto";
  const mode = asked === "auto" ? corrections.mode : asked;
  const numbers = bundleNumbers(bundle);
  return new ReferenceExecutor({ graph, model, numbers }, { ...options, corrections: mode });
}
