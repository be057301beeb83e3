import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../compiler/errors.ts";
import { checkStep, type Executor, logitRows, type StepRequest } from "./executor.ts";
import { type GenerateOptions, Session } from "./session.ts";

const VOCABULARY = 16;

/** After token n comes n + 1; it remembers what it was asked and what its cache holds. */
class Counting implements Executor {
  readonly name = "counting";
  readonly model = {
    architecture: "none",
    name: "counting",
    hiddenSize: 1,
    layers: 1,
    heads: 1,
    kvHeads: 1,
    headDim: 2,
    vocabularySize: VOCABULARY,
    contextLength: 12,
    stopTokens: [9],
    bosToken: null,
    parameters: 1,
  };
  readonly capacity = 4;
  readonly contextLength = 12;
  readonly requests: StepRequest[] = [];
  cache: number[] = [];

  step(request: StepRequest): Float32Array {
    checkStep(this, request, this.cache.length);
    this.requests.push(request);
    this.cache = [...this.cache.slice(0, request.position), ...request.tokens];
    const logits = new Float32Array(logitRows(request) * VOCABULARY);
    if (logits.length > 0) logits[(request.tokens.at(-1)! + 1) % VOCABULARY] = 1;
    return logits;
  }

  [Symbol.dispose](): void {}
}

const digits = { decode: (ids: Iterable<number>) => [...ids].map((id) => `${id} `).join("") };

async function run(session: Session, prompt: number[], options: GenerateOptions = {}) {
  const generation = session.generate(Int32Array.from(prompt), options);
  const tokens: number[] = [];
  let text = "";
  for await (const piece of generation) {
    if (piece.token !== undefined) tokens.push(piece.token);
    text += piece.text;
  }
  return { tokens, text, statistics: generation.statistics };
}

Deno.test("a prompt goes in in chunks, and only its last token needs logits", () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 9 }), (length, chunk) => {
    const executor = new Counting();
    const session = new Session(executor, { chunk });
    const tokens = Int32Array.from({ length }, (_, i) => i % VOCABULARY);
    const logits = session.prefill(tokens);
    assert.equal(logits.indexOf(1), length);
    assert.equal(session.position, length);
    assert.deepEqual(executor.cache, [...tokens]);
    assert.ok(executor.requests.every((r) => r.tokens.length <= Math.min(4, chunk) && r.as === "prefill"));
    assert.deepEqual(
      executor.requests.map((r) => r.logits),
      [...Array<string>(executor.requests.length - 1).fill("none"), "last"],
    );
  }));
});

Deno.test("generation stops at a stop token, which is no text", async () => {
  const executor = new Counting();
  const { tokens, text, statistics } = await run(new Session(executor), [3, 4, 5], { tokenizer: digits });
  assert.deepEqual(tokens, [6, 7, 8]);
  assert.equal(text, "6 7 8 ");
  assert.equal(statistics.end, "stop");
  assert.equal(statistics.promptTokens, 3);
  assert.equal(statistics.generatedTokens, 4);
  assert.ok(statistics.secondsToFirstToken >= statistics.promptSeconds);
  assert.deepEqual(executor.cache, [3, 4, 5, 6, 7, 8]);
  assert.ok(executor.requests.slice(1).every((r) => r.as === "decode" && r.tokens.length === 1));
});

Deno.test("generation stops at maxTokens, at the end of the context, and when aborted", async () => {
  const session = new Session(new Counting());
  const some = await run(session, [0], { maxTokens: 3 });
  assert.deepEqual([some.tokens, some.statistics.end], [[1, 2, 3], "length"]);
  session.rewind();
  const none = await run(session, [0], { maxTokens: 0 });
  assert.deepEqual([none.tokens, none.statistics.end, session.position], [[], "length", 0]);
  // 12 positions hold the prompt and 11 tokens; one more is sampled and not appended.
  const full = await run(session, [0], { stopTokens: [] });
  assert.deepEqual([full.tokens.length, full.statistics.end, session.position], [12, "context", 12]);

  session.rewind();
  const controller = new AbortController();
  const generation = session.generate(Int32Array.of(0), { signal: controller.signal });
  const tokens: number[] = [];
  for await (const { token } of generation) {
    tokens.push(token!);
    if (token === 2) controller.abort();
  }
  assert.deepEqual([tokens, generation.statistics.end], [[1, 2], "aborted"]);
  const before = await run(session, [0], { signal: controller.signal });
  assert.deepEqual([before.tokens, before.statistics.end], [[], "aborted"]);
});

Deno.test("whoever stops iterating has aborted", async () => {
  const generation = new Session(new Counting()).generate(Int32Array.of(0));
  for await (const _ of generation) break;
  assert.equal(generation.statistics.end, "aborted");
});

Deno.test("a prompt that does not fit says by how much, and computes nothing", async () => {
  const executor = new Counting();
  const session = new Session(executor);
  const refuses = (pattern: RegExp) => (error: unknown) =>
    error instanceof HcinferError && error.kind === "input" && pattern.test(error.message);
  assert.throws(() => session.prefill(new Int32Array(13)), refuses(/13 tokens, the context holds 12/));
  await assert.rejects(run(session, Array<number>(20).fill(0)), refuses(/20 tokens, the context holds 12/));
  assert.throws(() => session.prefill(new Int32Array(0)), refuses(/no tokens/));
  assert.equal(executor.requests.length, 0);
  session.prefill(new Int32Array(10));
  assert.throws(() => session.prefill(new Int32Array(3)), refuses(/3 tokens after 10 earlier ones/));
  assert.throws(() => session.prefill(Int32Array.of(16)), refuses(/token 16 at index 0/));
});

Deno.test("going back forgets what came after", () => {
  const executor = new Counting();
  const session = new Session(executor);
  session.prefill(Int32Array.of(1, 2, 3));
  session.rewind(1);
  session.decode(7);
  assert.deepEqual(executor.cache, [1, 7]);
  assert.throws(() => session.rewind(3), HcinferError);
});
