import assert from "node:assert/strict";
import { Penalties, type PenaltyOptions } from "./penalties.ts";

const OFF = { repetitionPenalty: 1, frequencyPenalty: 0, presencePenalty: 0 };

/** Of logits 2, -2, 1, -1, 0 after the prompt 0 1 and the answer 1 2 2. */
function penalised(options: PenaltyOptions): number[] {
  const penalties = new Penalties({ ...OFF, ...options });
  penalties.begin([0, 1]);
  for (const token of [1, 2, 2]) penalties.add(token);
  return [...penalties.apply(Float32Array.of(2, -2, 1, -1, 0))];
}

Deno.test("each penalty is its definition", () => {
  assert.deepEqual(penalised({}), [2, -2, 1, -1, 0]);
  // Of prompt and answer, towards less probable whatever the sign.
  assert.deepEqual(penalised({ repetitionPenalty: 2 }), [1, -4, 0.5, -1, 0]);
  assert.deepEqual(penalised({ repetitionPenalty: 0.5 }), [4, -1, 2, -1, 0]);
  // Of the answer alone.
  assert.deepEqual(penalised({ frequencyPenalty: 0.5 }), [2, -2.5, 0, -1, 0]);
  assert.deepEqual(penalised({ presencePenalty: 0.5 }), [2, -2.5, 0.5, -1, 0]);
  assert.deepEqual(penalised({ frequencyPenalty: -1, presencePenalty: 0.25 }), [2, -1.25, 2.75, -1, 0]);
  assert.deepEqual(
    penalised({ repetitionPenalty: 2, frequencyPenalty: 0.5, presencePenalty: 1 }),
    [1, -5.5, -1.5, -1, 0],
  );
});

Deno.test("logits are not written to, and a new answer begins with its prompt alone", () => {
  const penalties = new Penalties({ ...OFF, repetitionPenalty: 2, presencePenalty: 1 });
  const logits = Float32Array.of(2, -Infinity, 4);
  assert.equal(penalties.apply(logits), logits);
  penalties.add(2);
  assert.deepEqual([...penalties.apply(logits)], [2, -Infinity, 1]);
  penalties.begin([1]);
  assert.deepEqual([...penalties.apply(logits)], [2, -Infinity, 4]);
  assert.deepEqual([...logits], [2, -Infinity, 4]);
});
