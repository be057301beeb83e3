import assert from "node:assert/strict";
import { HcinferError } from "../../compiler/errors.ts";
import { TINY } from "../../compiler/ir/fixture.ts";
import { tinyPlan } from "../../tests/fixtures/passes.ts";
import { createNullExecutor } from "./null.ts";

Deno.test("the null executor keeps a clock and its steps' rules", () => {
  const plan = tinyPlan();
  using executor = createNullExecutor(plan, { threads: 2, corrections: "async" });
  assert.equal(executor.trace.mode, "async");
  assert.ok(executor.peakBytes > 0);
  const step = (tokens: number[], position: number) =>
    executor.step({ tokens: Int32Array.from(tokens), position, as: "decode", logits: "all" });
  assert.equal(step([1, 2, 3], 0).length, 3 * TINY.vocabulary);
  step([4], 3);
  assert.equal(executor.clock, 4 * executor.trace.microseconds);
  assert.throws(() => step([1], 9), HcinferError);
});
