/**
 * What must hold of a compiled graph, whatever it is. Each check isolates what may be wrong:
 *
 *   reference before lower, reference after it    the pass: equal in doubles
 *   reference after lower, cpu                    records, memory, kernels: near
 *   cpu in other modes, threads, cuts, company    equal bits
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
import { bundleNumbers } from "../../runtime/executors/reference_numbers.ts";
import type { FuzzBundle } from "./bundle.ts";
import { uniform } from "./choices.ts";

/** A prompt longer than attention's tile, and single tokens after it. */
const TOKENS = 13;
const CUTS = [11, 12] as const;
const KINDS: readonly StepKind[] = ["prefill", "decode"];

/** Doubles, summed in another order at most, rounded to f32 in the end. */
const SAME = 1e-7;
/** Where no weight is quantised: keys and values are f16, everything else is f32. */
const BF16_ERROR = 2e-3;
/**
 * Activations of quantised weights are int8 in groups: an element errs by 1/254 of its group's largest at most, a product
 * by 0.5 to 1 % of its norm, and more where a group has an outlier. Errors of products in a row add up.
 */
const INT8_ERROR = 0.04;
const INT8_ERROR_EACH = 0.015;

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

/** Executes a graph in doubles with the numbers of a bundle. */
type Reference = (graph: Graph, as: StepKind, corrections: CorrectionMode) => Float32Array;

export function referenceOf(bundle: FuzzBundle): Reference {
  const numbers = bundleNumbers(bundle);
  const { model } = bundle.plan;
  return (graph, as, corrections) => {
    using executor = new ReferenceExecutor({ graph, model, numbers }, { corrections });
    return logitsOf(executor, tokensOf(bundle), as);
  };
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

/** The cpu executor is near the reference executor on the same lowered graph. */
export function checkCpu(bundle: FuzzBundle, reference: Reference): void {
  const { lowered } = bundle;
  for (const as of KINDS) {
    for (const corrections of ["inline", "off"] as const) {
      using cpu = createCpuExecutor(bundle, { threads: 1, corrections, capacity: TOKENS });
      const expected = reference(lowered, as, corrections);
      const error = distance(logitsOf(cpu, tokensOf(bundle), as), expected);
      const chosen = corrections === "inline" && as === "decode";
      const bound = boundOf(lowered) +
        (chosen ? distance(reference(otherChoices(lowered), as, corrections), expected) : 0);
      if (Deno.env.get("FUZZ_DEBUG")) console.log("ERR", as, corrections, int8Depth(lowered), error, bound);
      assert.ok(
        error <= bound,
        `${as}, corrections ${corrections}: the cpu errs by ${error}, bound ${bound}`,
      );
    }
  }
}

/** Equal bits on other threads and lanes, cut into single tokens, and beside another sequence. */
export function checkBits(bundle: FuzzBundle): void {
  const tokens = tokensOf(bundle);
  const options = { capacity: 2 * TOKENS, cachePositions: 2 * PAGE_POSITIONS };
  for (const as of KINDS) {
    using first = createCpuExecutor(bundle, { ...options, threads: 1, corrections: "inline" });
    const expected = logitsOf(first, tokens, as);
    const same = (actual: Float32Array, what: string) =>
      assert.deepEqual(bits(actual), bits(expected), `${as}, ${what}`);
    same(logitsOf(first, tokens, as, Array.from({ length: TOKENS - 1 }, (_, t) => t + 1)), "token by token");
    for (const corrections of ["inline", "async"] as const) {
      using cpu = createCpuExecutor(bundle, { ...options, threads: 2, corrections });
      same(logitsOf(cpu, tokens, as), `2 threads, ${corrections}`);
      same(besideAnother(cpu, bundle, as), `2 threads, ${corrections}, beside another sequence`);
    }
  }
}

/** The logits of `logitsOf`, with another sequence at other positions in every step. */
function besideAnother(cpu: Executor, bundle: FuzzBundle, as: StepKind): Float32Array {
  const [tokens, others] = [tokensOf(bundle), tokensOf(bundle, TOKENS, 2)];
  using sequence = cpu.sequence();
  using other = cpu.sequence();
  cpu.step({ runs: [{ sequence: other, position: 0, tokens: others, as, logits: "none" }] });
  const rows: number[] = [];
  let position = 0;
  for (const end of [...CUTS, TOKENS]) {
    const run = { sequence, position, tokens: tokens.subarray(position, end), as, logits: "all" } as const;
    const beside = {
      sequence: other,
      position: TOKENS - position,
      tokens: others.subarray(0, 3),
      as,
      logits: "last",
    } as const;
    rows.push(...cpu.step({ runs: position === 0 ? [beside, run] : [run, beside] })[position === 0 ? 1 : 0]!);
    position = end;
  }
  return Float32Array.from(rows);
}

function bits(numbers: Float32Array): Int32Array {
  return new Int32Array(numbers.buffer, numbers.byteOffset, numbers.length);
}

function boundOf(graph: Graph): number {
  const depth = int8Depth(graph);
  return depth === 0 ? BF16_ERROR : INT8_ERROR + INT8_ERROR_EACH * depth;
}

/** The most linears of int8 activations on one way to the logits. */
function int8Depth(graph: Graph): number {
  const depth = new Map<string, number>();
  for (const node of graph.nodes) {
    const before = Math.max(0, ...node.inputs.map((name) => depth.get(name) ?? 0));
    const isCoded = node.op === "linear" && node.params.format?.kind !== "bf16";
    for (const value of node.outputs) depth.set(value.name, before + (isCoded ? 1 : 0));
  }
  return depth.get(graph.outputs[0]!)!;
}

/**
 * The same graph with one channel fewer (or, of one, one more) chosen in every window. Where two channels are nearly tied
 * for the last place a token may choose the other; the two being nearly worth the same, that changes no more than
 * leaving out the last one everywhere does.
 */
function otherChoices(graph: Graph): Graph {
  const nodes = graph.nodes.map((node): Node => {
    if (node.op !== "sparse_select") return node;
    const { channels } = node.params;
    return asNode({ ...node, params: { ...node.params, channels: channels === 1 ? 2 : channels - 1 } });
  });
  return { ...graph, nodes };
}
