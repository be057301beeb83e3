import assert from "node:assert/strict";
import { join } from "node:path";
import { temporary } from "../../tests/command_line.ts";
import { refusal } from "../../tests/fixtures/errors.ts";
import { writeTinyModel } from "../../tests/fixtures/tiny_model.ts";
import { openBundle } from "../bundle.ts";
import { COMPILE_DEFAULTS, compileModel, type CompileOptions } from "../compile.ts";
import { genericProfile } from "../profile.ts";
import { openCheckpoint } from "../weights/checkpoint.ts";
import { factorBytesRead, residualBytesRead } from "../weights/correction.ts";
import { gptq } from "../weights/quantizer.ts";
import { calibrate, calibrationGraph } from "./calibrate.ts";
import { WHITENINGS } from "./fit_factors.ts";
import type { Statistics } from "./statistics.ts";

const TEXT = {
  name: "text",
  sha256: "0".repeat(64),
  tokens: Int32Array.from({ length: 1000 }, (_, i) => i * i % 41),
};

type Compile = (changes: Partial<CompileOptions>, isCalibrated?: boolean) => ReturnType<typeof compileModel>;

async function withStatistics(test: (compile: Compile, bundle: string) => Promise<void>): Promise<void> {
  using folder = temporary();
  writeTinyModel(folder.path);
  let statistics: Statistics;
  {
    using checkpoint = openCheckpoint(folder.path);
    const graph = await calibrationGraph(checkpoint);
    const sizes = { tokens: 40 * 6, window: 6, fisherTokens: 180, seed: 4, threads: 2 };
    statistics = await calibrate({ ...sizes, checkpoint, graph, texts: [TEXT] });
  }
  const output = join(folder.path, "bundle");
  const options = { ...COMPILE_DEFAULTS, weights: "q2", group: 32, maxRank: 16, threads: 2, output } as const;
  await test(
    (changes, isCalibrated = true) =>
      compileModel({
        ...options,
        ...(isCalibrated ? { statistics } : {}),
        model: folder.path,
        profile: genericProfile(2),
        ...changes,
      }),
    output,
  );
}

Deno.test("factors and rows share a budget of bytes under one price, and are what a bundle holds", () =>
  withStatistics(async (compile, output) => {
    for (const correct of ["low_rank", "both"] as const) {
      for (const budget of [{ kind: "bytes", share: 0.4 }, { kind: "auto", share: 0.6 }] as const) {
        const { report, plan } = await compile({ correct, budget });
        using bundle = openBundle(output);
        const read = plan.windows.reduce((sum, { window, inputs, outputs, factors, residual }) => {
          const { rank, channels, threshold, expected } = plan.graph.budgets.find((b) =>
            b.window === window
          )!;
          assert.ok(correct === "both" || channels === 0);
          assert.equal(residual !== null, channels > 0);
          assert.ok(
            factors === null
              ? rank === 0
              : correct === "both"
              ? factors.maxRank === rank
              : rank <= factors.maxRank,
          );
          const rows = threshold === undefined ? channels : expected ?? 0;
          return sum + factorBytesRead("i8", inputs, outputs, rank) +
            rows * residualBytesRead(residual?.width === 3 ? 3 : 4, outputs, 1);
        }, report.bytes.backbone);
        // With formats of their own, backbone and corrections share what this format and the share would take.
        const uniform = (await compile({ correct: "none" })).report.bytes.backbone;
        assert.ok(
          read <= (1 + budget.share) * uniform * 1.001,
          `${correct} ${budget.kind}: ${read}, ${uniform}`,
        );
        assert.ok(
          read > (1 + 0.5 * budget.share) * uniform,
          `${correct} ${budget.kind}: ${read}, ${uniform}`,
        );
        assert.ok(report.predicted!.corrected < 0.9 * report.predicted!.alone);
        assert.ok(bundle.plan.windows.length > 0);
      }
    }
  }));

Deno.test("formats without corrections have no price, and their report is read again", () =>
  withStatistics(async (compile, output) => {
    for (const correct of ["none", "sparse"] as const) {
      const budget = { kind: "auto", share: 0.2 } as const;
      const { report } = await compile({ correct, budget, quantizer: gptq(2) });
      assert.equal(report.price !== undefined, correct === "sparse");
      using bundle = openBundle(output);
      assert.deepEqual(bundle.report, report);
    }
  }));

Deno.test("a free budget spends its bytes on factors where they lose less than larger formats", () =>
  withStatistics(async (compile) => {
    const budget = { kind: "auto", share: 0.6 } as const;
    const without = (await compile({ correct: "none", budget })).report;
    const { plan, report } = await compile({ correct: "low_rank", budget });
    const factors = plan.windows.reduce((sum, { inputs, outputs }, i) => {
      return sum + factorBytesRead("i8", inputs, outputs, plan.graph.budgets[i]!.rank);
    }, 0);
    const most = 1.6 * (await compile({ correct: "none" })).report.bytes.backbone;
    const read = report.bytes.backbone + factors;
    assert.ok(factors > 0 && read <= 1.001 * most && read > 0.95 * most, `${read} of ${most}`);
    const [left, uncorrected] = [report.predicted!.corrected, without.predicted!.corrected];
    assert.ok(left < uncorrected, `predicted ${left}, without factors ${uncorrected}`);
  }));

Deno.test("at equal ranks full whitening is predicted to leave least, and ranks that were asked for are kept", () =>
  withStatistics(async (compile) => {
    const left: number[] = [];
    for (const whitening of WHITENINGS) {
      const { report, plan } = await compile({
        correct: "low_rank",
        budget: { kind: "rank", rank: 5 },
        whitening,
      });
      assert.ok(plan.graph.budgets.every((b) => b.rank === 5 && b.channels === 0));
      left.push(report.predicted!.corrected);
    }
    assert.ok(left[2]! < left[0]! && left[2]! < left[1]!, `${left}`);
    const { plan, report } = await compile({
      correct: "both",
      budget: { kind: "rank+channels", rank: 3, channels: 6 },
    });
    assert.ok(plan.graph.budgets.every((b) => b.rank === 3 && b.channels === 6));
    assert.ok(plan.windows.every((w) => w.factors?.maxRank === 3));
    assert.ok(report.predicted!.corrected < report.predicted!.alone);
  }));

Deno.test("the paper's rule keeps to its budget, and needs statistics", () =>
  withStatistics(async (compile) => {
    const budget = { kind: "paper", share: 0.5 } as const;
    const { plan, report } = await compile({ correct: "low_rank", budget });
    const ranks = plan.graph.budgets.map((b) => b.rank);
    assert.ok(ranks.every((rank) => [0, 8, 16].includes(rank)) && ranks.some((rank) => rank > 0), `${ranks}`);
    const read = plan.windows.reduce((sum, { inputs, outputs }, i) => {
      return sum + factorBytesRead("i8", inputs, outputs, ranks[i]!);
    }, 0);
    assert.ok(read <= 0.5 * report.bytes.backbone);
    const needs = refusal("usage", /paper needs/);
    await assert.rejects(compile({ correct: "both", budget }), needs);
    await assert.rejects(compile({ correct: "low_rank", budget }, false), needs);
  }));
