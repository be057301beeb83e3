import assert from "node:assert/strict";
import { setImmediate } from "node:timers/promises";
import { refusal } from "../../tests/fixtures/errors.ts";
import { randomSource } from "../../tests/fixtures/random_source.ts";
import { TINY, transformer } from "../ir/fixture.ts";
import { fuse } from "../passes/fuse.ts";
import { floatLogits } from "./logits.ts";
import { FloatWeights } from "./ops.ts";
import { runChunk } from "./pass.ts";

const graph = fuse(transformer({ ...TINY, layers: 3 }));
const source = randomSource(graph);
const tokens = Int32Array.from({ length: 21 }, (_, t) => (t * 37 + 5) % TINY.vocabulary);
const text = { tokens, window: 7 };

Deno.test("logits of every text are those of the whole graph, for any number of threads", async () => {
  const { values } = runChunk(graph, new FloatWeights(source), text, 1);
  const whole = values.get(graph.outputs[0]!)!;
  const each = whole.length / 3;
  for (const threads of [1, 3]) {
    const logits = await floatLogits({ graph, source, text, threads });
    // In any order.
    for (const i of [2, 0, 1]) assert.deepEqual(logits(i), whole.slice(i * each, (i + 1) * each));
  }
});

Deno.test("progress may end the work, and lets others work meanwhile", async () => {
  let done = 0, turns = 0;
  const onProgress = (now: number, total: number) => {
    assert.ok(now === done++ && now < total);
    if (now === 5) throw new Error("enough");
  };
  const made = floatLogits({ graph, source, text, threads: 1, onProgress });
  const ended = assert.rejects(made, /enough/);
  while (done < 6) turns += await setImmediate(1);
  await ended;
  assert.ok(turns > 3);
  const none = { tokens: new Int32Array(0), window: 7 };
  await assert.rejects(
    floatLogits({ graph, source, text: none, threads: 1 }),
    refusal("input", /needs tokens/),
  );
});
