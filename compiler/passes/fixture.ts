/** Passes with fixed options and statistics, for tests. */
import fc from "fast-check";
import type { Graph } from "../ir/graph.ts";
import { paddedOutputs } from "../ir/naming.ts";
import { values } from "../ir/graph.ts";
import { TINY, transformer } from "../ir/fixture.ts";
import { Plan } from "../plan.ts";
import { layout } from "./layout.ts";
import { elementsPerToken } from "../ir/types.ts";
import { PROFILES } from "../profile.ts";
import { packedShape } from "../weights/format.ts";
import { budget, type BudgetOptions, type WindowStatistics } from "./budget.ts";
import { compensate } from "./compensate.ts";
import { fuse } from "./fuse.ts";
import { lower } from "./lower.ts";
import { place } from "./place.ts";
import { quantize, type QuantizeOptions } from "./quantize.ts";
import { type Schedule, schedule } from "./schedule.ts";

export const profile = PROFILES["generic-2-core"];

export interface Choices extends QuantizeOptions, Omit<BudgetOptions, "statistics" | "microseconds"> {
  readonly statistics?: readonly WindowStatistics[];
}

export const CHOICES: Choices = {
  weights: "q3",
  head: "q8",
  group: 64,
  correct: "sparse",
  budget: { kind: "bytes", share: 0.1 },
  residualWidth: 4,
  factorDType: "i8",
  maxRank: 16,
};

/** Statistics of weights whose error is like noise: 1 % of the energy, nearly evenly over channels, 40 % of it in few ranks. */
export function statisticsOf(graph: Graph): WindowStatistics[] {
  const types = values(graph);
  return graph.nodes.flatMap((node): WindowStatistics[] => {
    if (node.op !== "linear") return [];
    const { window } = node.params;
    const input = types.get(node.inputs[0] ?? "");
    if (window === undefined || input === undefined || node.params.format === undefined) return [];
    const inputs = elementsPerToken(input.type);
    const outputs = paddedOutputs(node.params.weights).total;
    const rank = Math.min(inputs, outputs);
    const errorEnergy = inputs * outputs / 100;
    return [{
      window,
      inputs,
      outputs,
      backboneBytes: packedShape(node.params.format, outputs, inputs).bytes,
      errorEnergy,
      weightEnergy: inputs * outputs,
      spectrum: Float32Array.from(
        { length: Math.min(rank, 16) },
        (_, c) => Math.sqrt(errorEnergy * 0.2 / 2 ** c),
      ),
      norms: Float32Array.from(
        { length: inputs },
        (_, j) => Math.sqrt(errorEnergy / inputs * (0.5 + (j * 7 % 11) / 10)),
      ),
    }];
  });
}

/** The graph after each pass of compile.ts, in order. */
export function passes(traced: Graph, choices: Choices = CHOICES): { stages: Graph[]; schedule: Schedule } {
  const fused = fuse(traced);
  const quantized = quantize(fused, choices);
  const placed = place(quantized, { profile });
  const statistics = choices.statistics ?? statisticsOf(quantized);
  const { correct, residualWidth, factorDType, maxRank } = choices;
  const budgeted = budget(placed, {
    correct,
    budget: choices.budget,
    statistics,
    residualWidth,
    factorDType,
    maxRank,
    ...(choices.sensitivity === undefined ? {} : { sensitivity: choices.sensitivity }),
  });
  const compensated = compensate(budgeted, { residualWidth, factorDType, profile });
  const lowered = lower(compensated, { profile });
  const last = schedule(lowered, { profile });
  const stages = [traced, fused, quantized, placed, budgeted, compensated, lowered, last.graph];
  return { stages, schedule: last };
}

export const arbitraryChoices: fc.Arbitrary<Choices> = fc.record({
  weights: fc.constantFrom("bf16", "q8", "q4", "q3", "q2"),
  head: fc.constantFrom("bf16", "q8"),
  group: fc.constantFrom(32, 64, 128),
  correct: fc.constantFrom("none", "low_rank", "sparse", "both"),
  budget: fc.double({ min: 0, max: 0.5, noNaN: true }).map((share) => ({ kind: "bytes", share })),
  residualWidth: fc.constantFrom(2, 3, 4, 5, 8),
  factorDType: fc.constantFrom("i8", "bf16"),
  maxRank: fc.nat(20),
});

/** A plan without weights. */
export function tinyPlan(): Plan {
  const { stages, schedule } = passes(transformer());
  const { lanes, corrections, graph } = schedule;
  return Plan.parse({
    version: 1,
    model: {
      architecture: "tiny",
      name: "tiny",
      hiddenSize: TINY.hidden,
      layers: TINY.layers,
      heads: TINY.heads,
      kvHeads: TINY.kvHeads,
      headDim: TINY.headDim,
      vocabularySize: TINY.vocabulary,
      contextLength: 128,
      stopTokens: [],
      bosToken: null,
      parameters: 1,
    },
    graph,
    weights: [],
    vectors: {},
    windows: statisticsOf(stages[2] ?? graph).map(({ window, inputs, outputs, errorEnergy }) => ({
      window,
      inputs,
      outputs,
      errorEnergy,
      residual: { width: 4, bytes: 1000 },
      factors: null,
    })),
    lanes,
    memory: layout(graph),
    corrections,
    provenance: { profile: PROFILES["generic-2-core"] },
  });
}
