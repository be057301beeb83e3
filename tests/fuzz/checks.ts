/**
 * What must hold of a compiled graph, whatever it is. Each check isolates what may be wrong:
 *
 *   reference before lower, reference after it    the pass: equal in doubles
 *   reference after lower, cpu or cuda            records, memory, kernels: near
 *   either in other modes, cuts, company          equal bits
 */
import assert from "node:assert/strict";
import { checkGraph, checkTensors } from "../../compiler/bundle_check.ts";
import { asNode } from "../../compiler/ir/build.ts";
import type { Graph, Node } from "../../compiler/ir/graph.ts";
import { parseGraph } from "../../compiler/ir/parse.ts";
import { PAGE_POSITIONS } from "../../compiler/memory.ts";
import { printGraph } from "../../compiler/ir/text.ts";
import type { CorrectionMode, Executor, StepKind } from "../../runtime/executor.ts";
import { createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import { ReferenceExecutor } from "../../runtime/executors/reference.ts";
import { bundleNumbers, type Numbers } from "../../runtime/executors/reference_numbers.ts";
import type { FuzzBundle } from "./bundle.ts";
import { cudaExecutor, onGpu, scattered } from "../fixtures/gpu.ts";
import { normals, uniform } from "./choices.ts";

/** A prompt longer than attention's tile, and single tokens after it. */
const TOKENS = 13;
const CUTS = [11, 12] as const;
const KINDS: readonly StepKind[] = ["prefill", "decode"];

/** Doubles, summed in another order at most, rounded to f32 in the end. */
const SAME = 1e-7;
/**
 * What the cpu executor rounds, as a part of a product's norm. Activations of quantised weights are int8 in groups: an
 * element errs by 1/254 of its group's largest at most, a product by 0.5 to 1 %, more where a group has an outlier. Keys
 * and values are f16 (2^-11); everything else is f32.
 */
const ROUNDING = { int8: 0.015, none: 5e-4 } as const;
/**
 * How far such errors carry depends on the graph (a norm of what is nearly zero, a softmax that decides) and is measured:
 * the reference, with every matrix of its linears disturbed by as much, moves by so much, and executors may differ by no
 * more. Of a thousand random graphs none differs by more than 0.6 of that; a wrong group, row, column or channel errs
 * by tens of percent.
 */
const DISTURBANCES = 3;

export function tokensOf(bundle: FuzzBundle, length = TOKENS, seed = 1): Int32Array {
  const next = uniform(seed);
  return Int32Array.from({ length }, () => Math.floor(next() * bundle.plan.model.vocabularySize));
}

/** Logits of all tokens, in steps that end before each of `cuts` and at the end. */
export function logitsOf(
  executor: Executor,
  tokens: Int32Array,
  as: StepKind,
  cuts: readonly number[] = CUTS,
): Float32Array {
  using sequence = executor.sequence();
  const rows: Float32Array[] = [];
  let position = 0;
  for (const end of [...cuts, tokens.length]) {
    const run = { sequence, position, tokens: tokens.subarray(position, end), as, logits: "all" } as const;
    rows.push(executor.step({ runs: [run] })[0]!.slice());
    position = end;
  }
  const all = new Float32Array(rows.reduce((sum, row) => sum + row.length, 0));
  rows.reduce((at, row) => (all.set(row, at), at + row.length), 0);
  return all;
}

/** ||actual - expected|| / ||expected|| */
export function distance(actual: Float32Array, expected: Float32Array): number {
  let error = 0, energy = 0;
  expected.forEach((value, i) => {
    error += (actual[i]! - value) ** 2;
    energy += value ** 2;
  });
  return Math.sqrt(error / energy);
}

/** Text that reads back, and a plan that a bundle may have: graph, lanes, memory, weights. */
export async function checkPlan({ plan, logical, lowered, tensors }: FuzzBundle): Promise<void> {
  for (const graph of [logical, lowered, plan.graph]) {
    assert.deepEqual(await parseGraph(printGraph(graph)), graph);
  }
  assert.equal(checkGraph(plan), undefined);
  assert.equal(checkTensors(plan, tensors), undefined);
}

/** Executes a graph in doubles with the numbers of a bundle; a number `disturbed` gives other weights near them. */
type Reference = (
  graph: Graph,
  as: StepKind,
  corrections: CorrectionMode,
  disturbed?: number,
) => Float32Array;

export function referenceOf(bundle: FuzzBundle): Reference {
  const numbers = bundleNumbers(bundle);
  const { model } = bundle.plan;
  const tokens = tokensOf(bundle);
  const known = new Map<Graph, Map<string, Float32Array>>();
  return (graph, as, corrections, disturbed) => {
    const own = known.get(graph) ?? new Map<string, Float32Array>();
    known.set(graph, own);
    const key = `${as} ${corrections} ${disturbed}`;
    const logits = own.get(key) ?? run();
    own.set(key, logits);
    return logits;

    function run(): Float32Array {
      const weights = disturbed === undefined ? numbers : disturb(numbers, graph, disturbed);
      using executor = new ReferenceExecutor({ graph, model, numbers: weights }, { corrections });
      return logitsOf(executor, tokens, as);
    }
  };
}

/** Numbers whose matrices of linears have noise of the size of the executor's rounding. */
function disturb(numbers: Numbers, graph: Graph, seed: number): Numbers {
  const sizes = new Map(
    graph.nodes.flatMap((node) =>
      node.op !== "linear" ? [] : node.params.weights.map(({ path }): [string, number] => {
        return [path, node.params.format?.kind === "bf16" ? ROUNDING.none : ROUNDING.int8];
      })
    ),
  );
  const known = new Map<string, Float64Array>();
  return {
    ...numbers,
    matrix(path) {
      const exact = numbers.matrix(path), size = sizes.get(path);
      if (size === undefined) return exact;
      const matrix = known.get(path) ?? withNoise(exact, size, seed + known.size);
      known.set(path, matrix);
      return matrix;
    },
  };
}

function withNoise(matrix: Float64Array, size: number, seed: number): Float64Array {
  const deviation = size * Math.sqrt(matrix.reduce((sum, w) => sum + w * w, 0) / matrix.length);
  const noise = normals(seed, matrix.length, deviation);
  return matrix.map((w, i) => w + noise[i]!);
}

/** Lowering changes no number, with corrections or without, of a prompt and of tokens decoded. */
export function checkLowering({ logical, lowered }: FuzzBundle, reference: Reference): void {
  for (const as of KINDS) {
    for (const corrections of ["inline", "off"] as const) {
      const error = distance(reference(lowered, as, corrections), reference(logical, as, corrections));
      assert.ok(error <= SAME, `${as}, corrections ${corrections}: lowering errs by ${error}`);
    }
  }
}

/**
 * What executes: the cpu executor; or the cuda executor on the simulator, with all that it can have on the GPU, or ("both") with
 * nodes scattered over both devices.
 */
export type Device = "cpu" | "cuda" | "both";

interface ExecutorLimits {
  readonly threads: number;
  readonly corrections: CorrectionMode;
  readonly capacity: number;
  readonly cachePositions?: number;
}

function executorOf(device: Device, bundle: FuzzBundle, options: ExecutorLimits): Executor {
  if (device === "cpu") return createCpuExecutor(bundle, options);
  const { threads: _, corrections: __, ...limits } = options;
  const placed = onGpu(bundle, { limits, prefill: "stream" });
  const random = uniform(bundle.plan.graph.nodes.length);
  return cudaExecutor(
    device === "cuda" ? placed : scattered(placed, () => random() < 0.5 ? "gpu" : "cpu"),
    options,
  );
}

/** An executor is near the reference executor on the graph before lowering: `errorOf` within its bound. */
export function checkNear(device: Device, bundle: FuzzBundle, reference: Reference): void {
  const { logical } = bundle;
  for (const as of KINDS) {
    for (const corrections of ["inline", "off"] as const) {
      const exact = reference(logical, as, corrections);
      const moved = Array.from(
        { length: DISTURBANCES },
        (_, n) =>
          distance(reference(logical, corrections === "off" ? "prefill" : as, corrections, 100 * n), exact),
      );
      // A prompt chooses no channels, and nothing does without corrections.
      const chosen = corrections === "inline" && as === "decode"
        ? distance(reference(otherChoices(logical), as, corrections), exact)
        : 0;
      const least = (isBF16(logical) ? ROUNDING.none : ROUNDING.int8) / 3;
      // How far noise moves a graph is itself a sample of few; what is wrong errs by many times as much.
      const bound = 2 * (least + Math.max(...moved) + chosen);
      const error = errorOf(device, bundle, reference, as, corrections);
      assert.ok(
        error <= bound,
        `${as}, corrections ${corrections}: the ${device} errs by ${error}, bound ${bound}`,
      );
    }
  }
}

/** Distance of an executor's logits from the reference's on the graph before lowering. */
export function errorOf(
  device: Device,
  bundle: FuzzBundle,
  reference: Reference,
  as: StepKind,
  corrections: CorrectionMode,
): number {
  using executor = executorOf(device, bundle, { threads: 1, corrections, capacity: TOKENS });
  return distance(logitsOf(executor, tokensOf(bundle), as), reference(bundle.logical, as, corrections));
}

/** Equal bits on other threads and lanes, cut into single tokens, and beside another sequence. */
export function checkBits(device: Device, bundle: FuzzBundle): void {
  const tokens = tokensOf(bundle);
  const options = { capacity: 2 * TOKENS, cachePositions: 2 * PAGE_POSITIONS };
  for (const as of KINDS) {
    using first = executorOf(device, bundle, { ...options, threads: 1, corrections: "inline" });
    const expected = logitsOf(first, tokens, as);
    const same = (actual: Float32Array, what: string) =>
      assert.deepEqual(bits(actual), bits(expected), `${as}, ${what}`);
    same(logitsOf(first, tokens, as, Array.from({ length: TOKENS - 1 }, (_, t) => t + 1)), "token by token");
    for (const corrections of ["inline", "async"] as const) {
      using other = executorOf(device, bundle, { ...options, threads: 2, corrections });
      same(logitsOf(other, tokens, as), `2 threads, ${corrections}`);
      same(besideAnother(other, bundle, as), `2 threads, ${corrections}, beside another sequence`);
    }
  }
}

/** The logits of `logitsOf`, with another sequence at other positions, of either kind, in every step. */
function besideAnother(executor: Executor, bundle: FuzzBundle, as: StepKind): Float32Array {
  const [tokens, others] = [tokensOf(bundle), tokensOf(bundle, TOKENS, 2)];
  using sequence = executor.sequence();
  using other = executor.sequence();
  executor.step({ runs: [{ sequence: other, position: 0, tokens: others, as, logits: "none" }] });
  const rows: number[] = [];
  let position = 0;
  for (const end of [...CUTS, TOKENS]) {
    const run = { sequence, position, tokens: tokens.subarray(position, end), as, logits: "all" } as const;
    const beside = {
      sequence: other,
      position: TOKENS - position,
      tokens: others.subarray(0, 3),
      as: KINDS[position % 2]!,
      logits: "last",
    } as const;
    rows.push(
      ...executor.step({ runs: position === 0 ? [beside, run] : [run, beside] })[position === 0 ? 1 : 0]!,
    );
    position = end;
  }
  return Float32Array.from(rows);
}

function bits(numbers: Float32Array): Int32Array {
  return new Int32Array(numbers.buffer, numbers.byteOffset, numbers.length);
}

function isBF16(graph: Graph): boolean {
  return graph.nodes.every((node) => node.op !== "linear" || node.params.format?.kind === "bf16");
}

/**
 * The same graph with one channel fewer (or, of one, one more) chosen in every window. Where two channels are nearly tied
 * for the last place a token may choose the other; the two being nearly worth the same, that changes no more than
 * leaving out the last one everywhere does.
 */
function otherChoices(graph: Graph): Graph {
  const nodes = graph.nodes.map((node): Node => {
    if (node.op !== "sparse_residual") return node;
    const { channels } = node.params;
    return asNode({ ...node, params: { ...node.params, channels: channels === 1 ? 2 : channels - 1 } });
  });
  return { ...graph, nodes };
}
