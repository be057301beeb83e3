import assert from "node:assert/strict";
import { RandomModels, SHAPES, someTokens } from "../../../tests/parity/random_models.ts";
import { createCpuExecutor } from "./executor.ts";

Deno.test("an executor that is closed while a step runs ends the step, and its memory is not gone under it", async () => {
  using models = new RandomModels();
  const promises: Promise<unknown>[] = [];
  for (let round = 0; round < 8; round++) {
    using bundle = await models.compile({ ...SHAPES["llama, 5 heads on 5, tied"], layers: 6 }, {
      weights: "q4",
      correct: "sparse",
    });
    using executor = createCpuExecutor(bundle, { threads: 2, corrections: "auto" });
    const sequence = executor.sequence();
    const run = { sequence, position: 0, tokens: someTokens(60, 70), as: "prefill", logits: "last" } as const;
    promises.push(executor.stepAsync({ runs: [run] }));
    if (round % 2 === 0) await new Promise((resolve) => setTimeout(resolve, round));
  }
  for (const result of await Promise.allSettled(promises)) {
    if (result.status === "rejected") assert.match(String(result.reason), /closed while a step ran/);
  }
});
