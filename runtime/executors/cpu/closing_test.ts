import assert from "node:assert/strict";
import { RandomModels, SHAPES, someTokens } from "../../../tests/parity/random_models.ts";
import { createCpuExecutor } from "./executor.ts";

Deno.test("an executor that is closed while a step runs ends the step, and its memory is not gone under it", async () => {
  using models = new RandomModels();
  const ends: Promise<string>[] = [];
  for (let round = 0; round < 8; round++) {
    using bundle = await models.compile({ ...SHAPES["llama, 5 heads on 5, tied"], layers: 6 }, {
      weights: "q4",
      correct: "sparse",
    });
    using executor = createCpuExecutor(bundle, { threads: 2, corrections: "auto" });
    const sequence = executor.sequence();
    const run = { sequence, position: 0, tokens: someTokens(60, 70), as: "prefill", logits: "last" } as const;
    ends.push(executor.stepAsync({ runs: [run] }).then(() => "done", String));
    if (round % 2 === 0) await new Promise((resolve) => setTimeout(resolve, round));
  }
  for (const end of ends) assert.match(await end, /^done$|closed while a step ran/);
});
