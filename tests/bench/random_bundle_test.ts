import assert from "node:assert/strict";
import { join } from "node:path";
import { openBundle } from "../../compiler/bundle.ts";
import { genericProfile } from "../../compiler/profile.ts";
import { createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import { temporary } from "../command_line.ts";
import { planRandomModel, SMALL, writeRandomBundle } from "./random_bundle.ts";

Deno.test("a bundle of random weights opens, and its logits are finite", async () => {
  for (const correct of ["none", "sparse", "low_rank"] as const) {
    using folder = temporary();
    const output = join(folder.path, "bundle");
    const model = await planRandomModel({
      shape: SMALL,
      weights: "q4",
      head: "q8",
      correct,
      budget: { kind: "bytes", share: 0.2 },
      profile: genericProfile(2),
    });
    writeRandomBundle(output, model, 1);
    using bundle = openBundle(output);
    using executor = createCpuExecutor(bundle, { threads: 2, corrections: "auto" });
    const run = { sequence: executor.sequence(), position: 0, as: "decode", logits: "last" } as const;
    const [logits] = executor.step({ runs: [{ ...run, tokens: Int32Array.of(1, 2, 3) }] });
    assert.ok(logits!.every(Number.isFinite), correct);
    assert.ok(new Set(logits).size > SMALL.vocab_size / 2, correct);
  }
});
