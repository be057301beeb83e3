/** Frequencies and scales of every kind of rotary embedding, against the numbers of transformers. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import type { Config } from "../../compiler/frontend/trace.ts";
import { LLAMA, traceArchitecture } from "../../tests/models/descriptions.ts";

interface Case {
  readonly name: string;
  readonly config: Readonly<Record<string, unknown>>;
  readonly frequencies: readonly number[];
  readonly scale: number;
}

const { cases }: { cases: readonly Case[] } = JSON.parse(
  readFileSync(new URL("../../tests/golden/rotary.json", import.meta.url), "utf8"),
);
const { rope_theta: _, ...WITHOUT_THETA } = LLAMA;
/** What the table's models have in common. */
const BASE: Config = {
  ...WITHOUT_THETA,
  num_hidden_layers: 1,
  hidden_size: 64,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  max_position_embeddings: 131072,
};

for (const { name, config, frequencies, scale } of cases) {
  Deno.test(`rotary embeddings as transformers has them: ${name}`, async () => {
    const { ropes } = await traceArchitecture({ ...BASE, ...config });
    assert.equal(ropes.length, 1);
    const [table] = ropes;
    assert.ok(table && Math.abs(table.scale - scale) < 1e-12, `${table?.scale} for ${scale}`);
    assert.equal(table.frequencies.length, frequencies.length);
    table.frequencies.forEach((frequency, i) => {
      // transformers computes in float32.
      const expected = frequencies[i] ?? NaN;
      assert.ok(Math.abs(frequency / expected - 1) < 4e-6, `pair ${i}: ${frequency} for ${expected}`);
    });
  });
}

Deno.test("frequencies that are not scaled are theta^(-2i / headDim), to the last bit", async () => {
  for (const [theta, dim] of [[10000, 16], [1e6, 128], [500000.5, 80]] as const) {
    const { ropes } = await traceArchitecture({ ...BASE, rope_theta: theta, head_dim: dim });
    const expected = Array.from({ length: dim / 2 }, (_, i) => theta ** (-2 * i / dim));
    assert.deepEqual(ropes, [{ name: "rope_0", frequencies: expected, scale: 1 }]);
  }
});
