import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { openBundle } from "../compiler/bundle.ts";
import { calibrate, calibrationGraph } from "../compiler/calibration/calibrate.ts";
import { COMPILE_DEFAULTS, compileModel, type CompileOptions } from "../compiler/compile.ts";
import { genericProfile } from "../compiler/profile.ts";
import { openCheckpoint } from "../compiler/weights/checkpoint.ts";
import { evaluate } from "../runtime/evaluate.ts";
import { createCpuExecutor } from "../runtime/executors/cpu/executor.ts";
import { temporary } from "../tests/command_line.ts";
import { writeLetterModel } from "../tests/fixtures/letter_model.ts";
import { measureBundle } from "./compile_measure.ts";

const WINDOW = 12, WINDOWS = 8;
const TEXT = {
  name: "text",
  sha256: "0".repeat(64),
  tokens: Int32Array.from({ length: 1000 }, (_, i) => i * i % 41),
};

Deno.test("what is measured of a bundle is what eval finds beside the uncompressed model", async () => {
  using folder = temporary();
  const [model, uncompressed, output] = ["model", "bf16", "bundle"].map((name) => join(folder.path, name));
  mkdirSync(model!);
  writeLetterModel(model!);
  const compile = (output: string, options: Partial<CompileOptions>) =>
    compileModel({
      ...{ ...COMPILE_DEFAULTS, model: model!, threads: 1, profile: genericProfile(1) },
      ...{ output, ...options },
    });
  await compile(uncompressed!, { weights: "bf16", correct: "none" });
  const statistics = await (async () => {
    using checkpoint = openCheckpoint(model!);
    const graph = await calibrationGraph(checkpoint);
    const sizes = { tokens: 40 * WINDOW, window: WINDOW, fisherTokens: 120, seed: 4, threads: 1 };
    return await calibrate({ ...sizes, checkpoint, graph, texts: [TEXT] });
  })();

  for (const correct of ["sparse", "none"] as const) {
    const { report } = await compile(output!, { weights: "q2s", correct, statistics });
    assert.equal(report.measured, undefined);
    const { text } = statistics;
    const asked = { model: model!, bundle: output!, text, onProgress: () => {} };
    const measured = await measureBundle({ ...asked, threads: 2 });
    assert.deepEqual(await measureBundle({ ...asked, threads: 1 }), measured);

    using bundle = openBundle(output!);
    assert.deepEqual(bundle.report, measured);
    const { alone, corrected, ...counts } = measured.measured!;
    assert.deepEqual(counts, { windows: WINDOWS, tokens: WINDOWS * (WINDOW - 1) });
    using reference = openBundle(uncompressed!);
    using exact = createCpuExecutor(reference, { threads: 1, corrections: "off" });
    for (const [corrections, found] of [["off", alone], ["inline", corrected]] as const) {
      using executor = createCpuExecutor(bundle, { threads: 1, corrections });
      if (found === undefined) {
        assert.ok(correct === "none" && corrections === "inline");
        continue;
      }
      const tokens = text.tokens.subarray(0, WINDOWS * WINDOW);
      const { means } = await evaluate(executor, { tokens, window: WINDOW, reference: exact });
      const { mean, standardError } = means.reference!.divergence;
      assert.ok(Math.abs(found.mean / mean - 1) < 0.02, `${found.mean}, by eval ${mean}`);
      assert.ok(Math.abs(found.standardError! / standardError! - 1) < 0.05);
    }
    if (corrected !== undefined) assert.ok(corrected.mean < 0.8 * alone.mean);
  }
});
