import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../errors.ts";
import { TINY, transformer } from "../ir/fixture.ts";
import type { Graph } from "../ir/graph.ts";
import { factorBytesRead, residualBytesRead } from "../weights/correction.ts";
import { budget, type BudgetOptions } from "./budget.ts";
import { PROFILES } from "../profile.ts";
import { asyncTimeline } from "../timeline.ts";
import {
  arbitraryChoices,
  CHOICES,
  limits,
  passes,
  profile,
  statisticsOf,
} from "../../tests/fixtures/passes.ts";
import { fuse } from "./fuse.ts";
import { channelCurve, laplaceShare, rankCurve } from "./gain.ts";
import { place } from "./place.ts";
import { quantize } from "./quantize.ts";

const placed = place(quantize(fuse(transformer({ ...TINY, hidden: 512, intermediate: 1536 })), CHOICES), {
  profile,
  limits,
});
const statistics = statisticsOf(placed);

function run(options: Partial<BudgetOptions>): Graph {
  const { correct, residualWidth, factorDType, maxRank } = CHOICES;
  return budget(placed, {
    profile,
    correct,
    residualWidth,
    factorDType,
    maxRank,
    statistics,
    budget: CHOICES.budget,
    ...options,
  });
}

function bytes(graph: Graph, options: Pick<BudgetOptions, "residualWidth" | "factorDType">): number {
  return graph.budgets.reduce((sum, { rank, channels }, i) => {
    const { inputs = 0, outputs = 0 } = statistics[i] ?? {};
    return sum + residualBytesRead(options.residualWidth, outputs, channels) +
      factorBytesRead(options.factorDType, inputs, outputs, rank);
  }, 0);
}

const backbone = statistics.reduce((sum, s) => sum + s.backboneBytes, 0);

Deno.test("a budget of bytes is spent and never exceeded", () => {
  fc.assert(
    fc.property(arbitraryChoices, ({ budget, correct, residualWidth, factorDType, maxRank }) => {
      const graph = run({ budget, correct, residualWidth, factorDType, maxRank });
      const share = budget.kind === "bytes" ? budget.share : 0;
      const spent = bytes(graph, { residualWidth, factorDType });
      assert.ok(spent <= share * backbone, `${spent} of ${share * backbone}`);
      if (correct === "sparse" && share < 0.2) assert.ok(spent >= share * backbone - 2500);
    }),
    { numRuns: 60 },
  );
});

Deno.test("more budget never takes from a window, and wins at least as much", () => {
  fc.assert(
    fc.property(
      fc.double({ min: 0, max: 0.5, noNaN: true }),
      fc.double({ min: 1, max: 2, noNaN: true }),
      (share, more) => {
        const little = run({ budget: { kind: "bytes", share } });
        const much = run({ budget: { kind: "bytes", share: share * more } });
        const channels = (graph: Graph) => graph.budgets.reduce((n, b) => n + b.channels, 0);
        assert.ok(channels(much) >= channels(little) - 4);
      },
    ),
    { numRuns: 30 },
  );
});

Deno.test("equal windows get nearly the same fraction of channels", () => {
  const graph = run({});
  const fractions = graph.budgets.map((b, i) => b.channels / (statistics[i]?.inputs ?? 1));
  const mean = fractions.reduce((a, b) => a + b) / fractions.length;
  assert.ok(mean > 0.05 && mean < 0.12, String(mean));
  // The window `o` has 64 inputs, so one step is 3 %.
  for (const fraction of fractions) assert.ok(Math.abs(fraction - mean) < 0.035, fractions.join(" "));
});

Deno.test("a window of higher sensitivity gets more", () => {
  const graph = run({
    sensitivity: ({ window, backboneBytes }) => backboneBytes * (window === "1.down" ? 4 : 1),
  });
  const channels = new Map(graph.budgets.map((b) => [b.window, b.channels]));
  assert.ok((channels.get("1.down") ?? 0) > 2 * (channels.get("0.down") ?? 0));
});

Deno.test("rows beside factors are worth what they win of what the factors leave", () => {
  // One factor holds 0.9 of the error, all in ten channels; what it leaves is even.
  const peaked = statistics.map((s) => {
    const norms = Float32Array.from(
      { length: s.inputs },
      (_, j) => j < 10 ? Math.sqrt(s.errorEnergy / 10) : 0,
    );
    const even = new Float32Array(s.inputs).fill(Math.sqrt(s.errorEnergy / 10 / s.inputs));
    const spectrum = Float32Array.of(Math.sqrt(0.9 * s.errorEnergy));
    return { ...s, norms, spectrum, normsAfter: (rank: number) => rank === 0 ? norms : even };
  });
  const next = (rank: number) => {
    const budget = { kind: "rank+channels", rank, channels: 40 } as const;
    const { cause = "" } = run({ statistics: peaked, correct: "both", maxRank: rank, budget }).budgets[2] ??
      {};
    return Number(/ would win ([\d.e-]+) %/.exec(cause)?.[1] ?? 0);
  };
  assert.ok(next(0) < 0.01, `${next(0)}`);
  assert.ok(next(1) > 0.05, `${next(1)}`);
});

Deno.test("causes say what the next step would buy", () => {
  assert.match(
    run({}).budgets[2]?.cause ?? "",
    /^\d+ rows of 512: next 2 would win \d[\d.]* % of the error for \d+\.\d kB; stopped by the budget of 10 % bytes$/,
  );
  assert.match(run({ correct: "both" }).budgets[2]?.cause ?? "", /^rank \d+ of 16 and \d+ rows of 512: /);
  assert.match(run({ correct: "none" }).budgets[0]?.cause ?? "", /corrections are off/);
  const exact = statistics.map((s) => ({ ...s, errorEnergy: 0 }));
  assert.match(run({ statistics: exact }).budgets[0]?.cause ?? "", /the weights are exact/);
  assert.match(run({ budget: { kind: "bytes", share: 9 } }).budgets[0]?.cause ?? "", /all there are/);
});

Deno.test("fixed ranks and channels, and options that contradict each other", () => {
  const ranks = run({ correct: "low_rank", budget: { kind: "rank", rank: 8 } });
  assert.ok(ranks.budgets.every((b) => b.rank === 8 && b.channels === 0));
  const channels = run({ budget: { kind: "channels", channels: 100 } });
  assert.ok(channels.budgets.every((b, i) => b.channels === Math.min(100, statistics[i]?.inputs ?? 0)));
  const both = run({ correct: "both", budget: { kind: "rank+channels", rank: 3, channels: 10 } });
  assert.ok(both.budgets.every((b) => b.rank === 3 && b.channels === 10));
  assert.match(both.budgets[0]?.cause ?? "", /; fixed at rank 3 and 10 rows$/);
  const refused: Partial<BudgetOptions>[] = [
    { correct: "both", budget: { kind: "rank", rank: 8 } },
    { correct: "sparse", budget: { kind: "rank+channels", rank: 3, channels: 10 } },
    { correct: "both", budget: { kind: "rank+channels", rank: 3, channels: -1 } },
    { correct: "sparse", budget: { kind: "rank", rank: 8 } },
    { correct: "low_rank", budget: { kind: "channels", channels: 8 } },
    { correct: "low_rank", budget: { kind: "rank", rank: 17 } },
    { budget: { kind: "channels", channels: 1.5 } },
    { budget: { kind: "bytes", share: -0.1 } },
    { budget: { kind: "bytes", share: NaN } },
  ];
  for (const options of refused) {
    assert.throws(() => run(options), (e) => e instanceof HcinferError && e.kind === "usage");
  }
});

Deno.test("the curves: Laplace's share, measured and concave", () => {
  // Sampled: |x| of a Laplace variable is exponential; the i-th of n quantiles is -ln((i + 1/2) / n).
  const n = 20_000;
  const squares = Array.from({ length: n }, (_, i) => Math.log((i + 0.5) / n) ** 2);
  const total = squares.reduce((a, b) => a + b, 0);
  for (const fraction of [0.01, 0.1, 0.5]) {
    const share = squares.slice(0, fraction * n).reduce((a, b) => a + b, 0) / total;
    assert.ok(Math.abs(laplaceShare(fraction) - share) < 1e-3);
  }
  const norms = Float32Array.from({ length: 300 }, (_, j) => 0.1 + j % 7);
  const curves: ((x: number) => number)[] = [
    channelCurve(300),
    channelCurve(300, norms),
    channelCurve(300, norms, norms),
    channelCurve(300, new Float32Array(300)),
    rankCurve(Float32Array.of(3, 2, 1), 14),
  ];
  for (const curve of curves) {
    assert.equal(curve(0), 0);
    let step = Infinity;
    for (let x = 1; x <= 300; x++) {
      const gain = curve(x) - curve(x - 1);
      assert.ok(gain >= -1e-12 && gain <= step + 1e-9, `${x}: ${gain} after ${step}`);
      step = gain;
    }
    assert.ok(Math.abs(curve(300) - 1) < 1e-6);
  }
  // Equal norms are the closed form.
  const equal = channelCurve(300, new Float32Array(300).fill(2));
  for (const x of [10, 30, 150]) assert.ok(Math.abs(equal(x) - laplaceShare(x / 300)) < 4e-3);
  // Unequal ones win more.
  assert.ok((curves[1]?.(30) ?? 0) > laplaceShare(0.1));
});

Deno.test("beside a GPU: bytes that hide, of the form that wins most; what was asked for is kept and said not to hide", () => {
  const sizes = {
    ...TINY,
    layers: 1,
    hidden: 4096,
    intermediate: 14336,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
  };
  const machine = { profile: PROFILES["rtx-4090"], limits };
  const compiled = (choices: Partial<typeof CHOICES>) =>
    passes(transformer(sizes), { ...CHOICES, weights: "q4", ...choices }, machine).schedule;
  const share = (share: number) => ({ budget: { kind: "bytes", share } }) as const;
  for (const correct of ["sparse", "low_rank", "both"] as const) {
    const { graph, lanes } = compiled({ correct, maxRank: 64, ...share(0.5) });
    for (const { cause } of graph.budgets) {
      const [, time, beside] = /; ([\d.]+) us of ([\d.]+) us beside the GPU, hidden$/.exec(cause) ?? [];
      assert.ok(Number(time) > 0 && Number(time) <= Number(beside), cause);
    }
    assert.ok(
      graph.budgets.some(({ cause }) => /stopped by the time of the window|all there are/.test(cause)),
    );
    // The timeline finds the same: nobody waits for a correction.
    const { corrections, lanes: [backbone] } = asyncTimeline(graph, lanes, machine);
    assert.ok(backbone!.stalled < 0.05, `${correct}: ${backbone!.stalled} us`);
    assert.equal(corrections.hidden, corrections.busy);
    assert.ok(corrections.busy > 0);
  }
  const fewer = compiled(share(0.001)).graph.budgets, more = compiled(share(0.5)).graph.budgets;
  assert.ok(fewer.every((b, i) => b.channels < more[i]!.channels));
  const fixed = compiled({ budget: { kind: "channels", channels: 2000 } });
  assert.ok(
    fixed.graph.budgets.every((b) => b.channels === 2000 && / beside the GPU, not hidden$/.test(b.cause)),
  );
  const stalled = asyncTimeline(fixed.graph, fixed.lanes, machine);
  assert.ok(stalled.lanes[0]!.stalled > 100);
  assert.ok(stalled.corrections.hidden < stalled.corrections.busy);
});

Deno.test("a window too short for any correction has none, and says what the least would take", () => {
  const { graph, corrections } = passes(transformer(), CHOICES, { profile: PROFILES["h200"] }).schedule;
  for (const { rank, channels, cause } of graph.budgets) {
    assert.deepEqual([rank, channels], [0, 0]);
    assert.match(
      cause,
      /stopped by the time of the window; the least would take \S+ us of \S+ us beside the GPU$/,
    );
  }
  assert.equal(corrections.mode, "off");
});
