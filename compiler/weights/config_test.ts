import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../errors.ts";
import { parseConfig, parseTokenEnds } from "./config.ts";

const SOUND = {
  model_type: "llama",
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  vocab_size: 100,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  hidden_act: "silu",
};

function refused(change: Record<string, unknown>, pattern: RegExp): void {
  assert.throws(() => parseConfig(JSON.stringify({ ...SOUND, ...change }), "config.json"), (error) => {
    assert.ok(error instanceof HcinferError && error.kind === "checkpoint", String(error));
    assert.match(error.message, /^config\.json/);
    assert.match(error.message, pattern);
    return true;
  });
}

Deno.test("shapes are filled in, and other fields passed on as they are", () => {
  const fields = { ...SOUND, anything: [1], rope_scaling: { rope_type: "yarn" }, sliding_window: 4096 };
  const config = parseConfig(JSON.stringify(fields), "config.json");
  assert.deepEqual(config, { ...fields, num_key_value_heads: 4, head_dim: 16 });
});

Deno.test("what only some architectures have is theirs to demand", () => {
  const { intermediate_size: _, rms_norm_eps: __, hidden_act: ___, ...other } = SOUND;
  parseConfig(JSON.stringify({ ...other, activation_function: "gelu_new", head_dim: 15 }), "config.json");
});

Deno.test("missing and absurd fields are named", () => {
  refused({ hidden_size: undefined }, /hidden_size/);
  refused({ hidden_size: "64" }, /hidden_size/);
  refused({ num_hidden_layers: 1e9 }, /num_hidden_layers/);
  refused({ vocab_size: 1e15 }, /vocab_size/);
  refused({ vocab_size: -1, hidden_size: 0 }, /hidden_size[^]*vocab_size/);
  refused({ num_attention_heads: 3 }, /head_dim is missing/);
  refused({ num_attention_heads: 4, num_key_value_heads: 3 }, /no multiple of num_key_value_heads 3/);
});

Deno.test("a checkpoint that is already quantised is refused", () => {
  refused({ quantization_config: { bits: 4 } }, /already quantised/);
});

Deno.test("ends of a text: generation_config.json first, one id or several", () => {
  const config = parseConfig(JSON.stringify({ ...SOUND, bos_token_id: 1, eos_token_id: 2 }), "config.json");
  assert.deepEqual(parseTokenEnds(config, undefined, "g"), { bosToken: 1, stopTokens: [2] });
  assert.deepEqual(parseTokenEnds(config, '{"eos_token_id": [7, 2, 7]}', "g"), {
    bosToken: 1,
    stopTokens: [7, 2],
  });
  assert.throws(() => parseTokenEnds(config, '{"eos_token_id": "x"}', "g"), HcinferError);
  const none = parseConfig(JSON.stringify({ ...SOUND, bos_token_id: null }), "config.json");
  assert.deepEqual(parseTokenEnds(none, undefined, "g"), { bosToken: null, stopTokens: [] });
});

Deno.test("whatever the text, a config within bounds or a typed error", () => {
  const value = fc.oneof(fc.constantFrom(0, -1, 1e308, 2 ** 53, 1.5, null, "", true, [], {}), fc.anything());
  const change = fc.dictionary(
    fc.constantFrom(...Object.keys(SOUND), "head_dim", "num_key_value_heads"),
    value,
  );
  fc.assert(
    fc.property(change, fc.json(), (fields, text) => {
      for (const candidate of [JSON.stringify({ ...SOUND, ...fields }), text, text.slice(1)]) {
        try {
          const config = parseConfig(candidate, "config.json");
          assert.ok(config.num_hidden_layers <= 2048 && Number.isInteger(config.head_dim));
        } catch (error) {
          assert.ok(error instanceof HcinferError, String(error));
        }
      }
    }),
    { numRuns: 1000 },
  );
});
