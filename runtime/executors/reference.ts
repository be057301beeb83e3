/**
 * The oracle: plain TypeScript in double precision, one rule per op, nodes in the order of the graph. It rounds
 * nothing but the logits: activations, sums and the key-value cache are doubles, weights are what their packed
 * bytes say. Every other executor is tested against it.
 *
 * It deliberately knows nothing of lanes, buffers and threads: `threads` is ignored, and corrections are either off
 * or exact ("async" and "inline" are one thing here).
 */
import { type Graph, type Node, type NodeOf, ropeTable } from "../../compiler/ir/graph.ts";
import { paddedOutputs } from "../../compiler/ir/naming.ts";
import { CORRECTION_OPS, DECODE_OPS, type Op } from "../../compiler/ir/ops.ts";
import { HcinferError } from "../../compiler/errors.ts";
import { limitsOf } from "../../compiler/memory.ts";
import type { ModelInfo } from "../../compiler/plan.ts";
import {
  checkStep,
  type ExecutableBundle,
  type Executor,
  type ExecutorOptions,
  logitRows,
  type Run,
  type Sequence,
  type StepRequest,
} from "../executor.ts";
import { LayerCache } from "./reference_math.ts";
import { bundleNumbers, type Numbers } from "./reference_numbers.ts";
import { apply, type Step } from "./reference_rules.ts";

/** Large enough for good blocks, small enough for the [tokens, vocabulary] logits of a step. */
const DEFAULT_CAPACITY = 64;

export interface ReferenceModel {
  readonly graph: Graph;
  readonly model: ModelInfo;
  readonly numbers: Numbers;
}

class ReferenceSequence implements Sequence {
  length = 0;
  caches = new Map<number, LayerCache>();

  /** @param owner the executor; undefined once this is closed */
  constructor(public owner: Executor | undefined) {}

  fork(): ReferenceSequence {
    const copy = new ReferenceSequence(this.owner);
    copy.length = this.length;
    for (const [layer, cache] of this.caches) copy.caches.set(layer, cache.copy());
    return copy;
  }

  [Symbol.dispose](): void {
    this.owner = undefined;
    this.length = 0;
    this.caches.clear();
  }
}

export class ReferenceExecutor implements Executor {
  readonly name = "reference";
  readonly model: ModelInfo;
  readonly capacity: number;
  readonly contextLength: number;
  readonly #graph: Graph;
  readonly #numbers: Numbers;
  readonly #corrections: boolean;
  /** First column of each output of a linear in what its window's deltas are added to. */
  readonly #columns = new Map<string, number>();

  constructor({ graph, model, numbers }: ReferenceModel, options: Partial<ExecutorOptions> = {}) {
    this.model = model;
    const { capacity, contextLength } = limitsOf(model, { capacity: DEFAULT_CAPACITY, ...options });
    this.capacity = capacity;
    this.contextLength = contextLength;
    this.#graph = graph;
    this.#numbers = numbers;
    this.#corrections = options.corrections !== "off";
    for (const node of graph.nodes) {
      if (node.op !== "linear") continue;
      const { firstColumn } = paddedOutputs(node.params.weights);
      node.outputs.forEach((value, i) => this.#columns.set(value.name, firstColumn[i]!));
    }
  }

  sequence(): ReferenceSequence {
    return new ReferenceSequence(this);
  }

  step(request: StepRequest): readonly Float32Array[] {
    checkStep(this, request);
    return request.runs.map((run) => ({ ...run, sequence: this.#own(run.sequence) }))
      .map((run) => this.#run(run));
  }

  #own(sequence: Sequence): ReferenceSequence {
    if (sequence instanceof ReferenceSequence && sequence.owner === this) return sequence;
    throw new HcinferError("input", "a run names a sequence that is closed or of another executor");
  }

  stepAsync(request: StepRequest, signal?: AbortSignal): Promise<readonly Float32Array[]> {
    return new Promise((resolve) => {
      signal?.throwIfAborted();
      resolve(this.step(request));
    });
  }

  #run(run: Run & { readonly sequence: ReferenceSequence }): Float32Array {
    const { sequence, tokens, position, as } = run;
    // Whatever happens now, later positions no longer hold.
    sequence.length = position;
    const count = tokens.length, wanted = logitRows(run);
    const [ids, positions, rows] = this.#graph.inputs.map((value) => value.name);
    const values = new Map<string, Float64Array>([
      [ids!, Float64Array.from(tokens)],
      [positions!, Float64Array.from(tokens, (_, t) => position + t)],
    ]);
    // Before `lower` a graph makes the logits of all tokens.
    if (rows !== undefined) {
      values.set(
        rows,
        Float64Array.from({ length: wanted }, (_, r) => count - wanted + r),
      );
    }
    const step: Step = {
      numbers: this.#numbers,
      as,
      corrections: this.#corrections,
      position,
      cache: (layer, width) => {
        const cache = sequence.caches.get(layer) ?? new LayerCache(width);
        sequence.caches.set(layer, cache);
        return cache;
      },
      rope: (table) => ropeTable(this.#graph, table),
    };
    for (const node of this.#graph.nodes) {
      if (CORRECTION_OPS.has(node.op) && !this.#corrections) continue;
      if (DECODE_OPS.has(node.op) && as === "prefill") continue;
      const own = !this.#corrections && node.op === "merge"
        ? { ...node, params: { ...node.params, deltas: 0 } }
        : node;
      const outputs = apply(own as NodeOf<Op>, this.#inputs(node, values, count), step);
      node.outputs.forEach((value, i) => values.set(value.name, outputs[i]!));
    }
    sequence.length = position + count;
    const logits = values.get(this.#graph.outputs[0]!)!;
    const made = rows === undefined ? count : wanted;
    return Float32Array.from(logits.subarray(logits.length / Math.max(made, 1) * (made - wanted)));
  }

  /** A node's inputs, with the deltas added that this step makes. */
  #inputs(node: Node, values: ReadonlyMap<string, Float64Array>, count: number): Float64Array[] {
    const inputs = node.inputs.map((name) => values.get(name)).filter((value) => value !== undefined);
    return inputs.map((x, i) => {
      const deltas = (node.added?.[i] ?? []).map((name) => values.get(name)).filter((d) => d !== undefined);
      if (deltas.length === 0) return x;
      const sum = x.slice();
      const width = x.length / count, column = this.#columns.get(node.inputs[i]!)!;
      for (const delta of deltas) {
        const total = delta.length / count;
        for (let t = 0; t < count; t++) {
          for (let c = 0; c < width; c++) sum[t * width + c]! += delta[t * total + column + c]!;
        }
      }
      return sum;
    });
  }

  [Symbol.dispose](): void {}
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
