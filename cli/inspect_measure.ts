/**
 * What `inspect --measure` finds: decode steps of a bundle on this machine's CPU, and how long each kind of node took in them.
 * The engine notes when its first thread leaves an instruction, with the wait for the others. In line, corrections and their
 * linear have no barrier between them (runtime/executors/cpu/program.ts), so with several threads a thread's wait for a linear
 * may count as the corrections'.
 */
import type { Bundle } from "../compiler/bundle.ts";
import { PREDICTED_CONTEXT } from "../compiler/cost.ts";
import { HcinferError } from "../compiler/errors.ts";
import { nodeKind } from "../compiler/inspect_kinds.ts";
import { usesGpu } from "../compiler/ir/graph.ts";
import { limitsOf } from "../compiler/memory.ts";
import { withoutCorrections } from "../compiler/passes/steps.ts";
import { correctionMode } from "../compiler/plan.ts";
import { createCpuExecutor } from "../runtime/executors/cpu/executor.ts";
import { median } from "./bench.ts";

/** Steps that count, after some that warm caches and clocks up. */
const STEPS = 64, WARM_UP = 8;

export interface Measured {
  /** The executor, in words. */
  readonly device: string;
  readonly threads: number;
  /** Corrections that run beside the backbone are measured in line: the engine times one lane. */
  readonly mode: "inline" | "off";
  /** Cached positions that attention read. */
  readonly context: number;
  readonly steps: number;
  /** Of a step's instructions: the median over steps, of all and by kind of node. */
  readonly microseconds: number;
  readonly kinds: readonly { readonly kind: string; readonly microseconds: number }[];
}

/**
 * Decodes random tokens, each at the same position.
 *
 * @param onProgress steps done, of how many
 * @throws {HcinferError} "usage" for a plan with nodes on a GPU, and what createCpuExecutor throws
 */
export function measureKinds(
  bundle: Bundle,
  threads: number,
  onProgress: (done: number, total: number, what: string) => void,
): Measured {
  const { plan } = bundle;
  if (usesGpu(plan.graph)) {
    throw new HcinferError(
      "usage",
      "--measure times instructions of the CPU, and this plan has nodes on a GPU: compile with --device cpu, or use bench",
    );
  }
  const mode = correctionMode(plan, "inline", threads) === "off" ? "off" : "inline";
  const { nodes } = mode === "off" ? withoutCorrections(plan.graph) : plan.graph;
  const context = Math.min(PREDICTED_CONTEXT, limitsOf(plan.model).contextLength - 1);
  using executor = createCpuExecutor(bundle, { threads, corrections: mode, contextLength: context + 1 });
  using sequence = executor.sequence();
  const { vocabularySize } = executor.model;
  const tokens = (from: number, to: number) =>
    Int32Array.from({ length: to - from }, (_, i) => ((from + i) * 97 + 5) % vocabularySize);
  for (let position = 0; position < context; position += executor.capacity) {
    const end = Math.min(position + executor.capacity, context);
    executor.step({
      runs: [{ sequence, position, tokens: tokens(position, end), as: "prefill", logits: "none" }],
    });
  }

  executor.trace();
  const kinds = nodes.map(nodeKind);
  const totals: number[] = [];
  const times = new Map(kinds.map((kind) => [kind, [] as number[]]));
  for (let step = 0; step < WARM_UP + STEPS; step++) {
    onProgress(step, WARM_UP + STEPS, "steps");
    const at = context + step;
    executor.step({
      runs: [{ sequence, position: context, tokens: tokens(at, at + 1), as: "decode", logits: "last" }],
    });
    if (step < WARM_UP) continue;
    const sums = new Map<string, number>();
    // In line and without corrections a node is an instruction of the one lane, in graph order.
    executor.trace().forEach((time, i) => sums.set(kinds[i]!, (sums.get(kinds[i]!) ?? 0) + time / 1000));
    for (const [kind, sum] of sums) times.get(kind)!.push(sum);
    totals.push([...sums.values()].reduce((total, time) => total + time, 0));
  }
  const rounded = (microseconds: readonly number[]) => Math.round(median(microseconds) * 10) / 10;
  return {
    device: executor.name,
    threads,
    mode,
    context,
    steps: STEPS,
    microseconds: rounded(totals),
    kinds: [...times].map(([kind, times]) => ({ kind, microseconds: rounded(times) })),
  };
}
