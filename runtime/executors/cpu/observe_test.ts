import assert from "node:assert/strict";
import { RandomModels, SHAPES, someTokens } from "../../../tests/parity/random_models.ts";
import { createCpuExecutor } from "./executor.ts";

Deno.test("observers add up the same sums for any threads and cuts of a prompt, and products agree with squares", async () => {
  using models = new RandomModels();
  const shape = SHAPES["qwen3, 4 heads on 2, tied"];
  using bundle = await models.compile(shape, { weights: "q4", correct: "none" });
  const tokens = someTokens(21, 53);
  const observed = (observe: "squares" | "products", threads: number, chunk: number) => {
    using executor = createCpuExecutor(bundle, { threads, corrections: "auto", observe, contextLength: 32 });
    using sequence = executor.sequence();
    for (let position = 0; position < tokens.length; position += chunk) {
      const run = { sequence, position, tokens: tokens.subarray(position, position + chunk) };
      executor.step({ runs: [{ ...run, as: "prefill", logits: "none" }] });
    }
    return new Map([...executor.observations].map(([window, sums]) => [window, sums.slice()]));
  };
  const squares = observed("squares", 1, 21);
  assert.deepEqual(observed("squares", 2, 4), squares);
  const products = observed("products", 2, 7);
  assert.deepEqual([...products.keys()], [...squares.keys()]);
  assert.ok(squares.size > 0);
  for (const [window, sums] of squares) {
    const full = products.get(window)!;
    assert.equal(full.length, sums.length ** 2);
    sums.forEach((sum, i) => {
      assert.ok(sum > 0, `${window}[${i}] was observed`);
      assert.equal(full[i * sums.length + i], sum);
      assert.equal(full[i * sums.length], full[i]);
    });
  }
});
