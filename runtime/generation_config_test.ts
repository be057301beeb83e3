import assert from "node:assert/strict";
import { HcinferError } from "../compiler/errors.ts";
import { samplingDefaults } from "./generation_config.ts";

function defaults(text: string | undefined) {
  const bytes = text === undefined ? undefined : new TextEncoder().encode(text);
  return samplingDefaults({
    path: "model",
    file: (name) => name === "generation_config.json" ? bytes : undefined,
  });
}

Deno.test("what published files say", () => {
  // Qwen3-0.6B.
  assert.deepEqual(
    defaults('{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 2]}'),
    { temperature: 0.6, topK: 20, topP: 0.95 },
  );
  assert.deepEqual(defaults('{"do_sample": true, "repetition_penalty": 1.05}'), {
    temperature: 1,
    repetitionPenalty: 1.05,
  });
  // Without do_sample the rest has no effect.
  assert.deepEqual(defaults('{"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}'), {
    repetitionPenalty: 1.1,
  });
  assert.deepEqual(defaults('{"bos_token_id": 1}'), {});
  assert.deepEqual(defaults(undefined), {});
});

Deno.test("values that mean off, and no others, are off", () => {
  assert.deepEqual(
    defaults(
      '{"do_sample": true, "temperature": 0.7, "top_k": -1, "top_p": 1.0, "min_p": null, "repetition_penalty": 1}',
    ),
    { temperature: 0.7 },
  );
  assert.deepEqual(defaults('{"do_sample": true, "temperature": 0, "top_k": 5}'), {});
  assert.deepEqual(defaults('{"do_sample": true, "temperature": "hot", "min_p": 0.1, "top_k": 0}'), {
    temperature: 1,
    minP: 0.1,
  });
  for (const text of ["{", "[]", "7"]) {
    assert.throws(
      () => defaults(text),
      (error) => error instanceof HcinferError && /generation_config\.json is no JSON/.test(error.message),
    );
  }
});
