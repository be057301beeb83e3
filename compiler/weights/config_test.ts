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

Deno.test("defaults are filled in, and other fields passed on", () => {
  const config = parseConfig(JSON.stringify({ ...SOUND, anything: [1] }), "config.json");
  assert.equal(config.num_key_value_heads, 4);
  assert.equal(config.head_dim, 16);
  assert.equal(config.rope_theta, 10000);
  assert.equal(config.tie_word_embeddings, false);
  assert.deepEqual(config["anything"], [1]);
  const newer = parseConfig(
    JSON.stringify({ ...SOUND, rope_parameters: { rope_theta: 5e5, rope_type: "default" } }),
    "config.json",
  );
  assert.equal(newer.rope_theta, 5e5);
});

Deno.test("missing and absurd fields are named", () => {
  refused({ hidden_size: undefined }, /hidden_size/);
  refused({ hidden_size: "64" }, /hidden_size/);
  refused({ num_hidden_layers: 1e9 }, /num_hidden_layers/);
  refused({ vocab_size: 1e15 }, /vocab_size/);
  refused({ vocab_size: -1, rms_norm_eps: 0 }, /vocab_size[^]*rms_norm_eps/);
  refused({ num_attention_heads: 3 }, /head_dim is missing/);
  refused({ num_attention_heads: 4, num_key_value_heads: 3 }, /no multiple of num_key_value_heads 3/);
  refused({ head_dim: 15 }, /odd/);
  refused({ rms_norm_eps: null }, /rms_norm_eps/);
});

Deno.test("what would give other numbers is refused", () => {
  refused({ rope_scaling: { rope_type: "llama3", factor: 8 } }, /rotary embeddings scaled as "llama3"/);
  refused({ rope_scaling: { type: "linear", factor: 2 } }, /scaled as "linear"/);
  refused({ hidden_act: "gelu" }, /hidden_act "gelu"/);
  refused({ use_sliding_window: true }, /sliding-window/);
  refused({ sliding_window: 4096 }, /sliding-window/);
  refused({ attention_bias: true }, /attention_bias/);
  refused({ quantization_config: { bits: 4 } }, /already quantised/);
  parseConfig(JSON.stringify({ ...SOUND, sliding_window: null, use_sliding_window: false }), "config.json");
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
    fc.constantFrom(...Object.keys(SOUND), "head_dim", "rope_scaling", "rope_theta"),
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
