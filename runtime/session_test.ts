import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../compiler/errors.ts";
import {
  checkStep,
  type Executor,
  logitRows,
  type Run,
  type Sequence,
  type StepRequest,
} from "./executor.ts";
import { Sampler } from "./sampler.ts";
import { type GenerateOptions, Session } from "./session.ts";

const VOCABULARY = 16;

/** Tokens that are cached, and the executor that they are cached by. */
class Tokens implements Sequence {
  constructor(readonly executor: Counting, public tokens: readonly number[] = []) {
    executor.open.add(this);
  }

  get length(): number {
    return this.tokens.length;
  }

  fork(): Tokens {
    return new Tokens(this.executor, this.tokens);
  }

  [Symbol.dispose](): void {
    this.executor.open.delete(this);
  }
}

/** After token n comes n + 1; it remembers what it was asked. */
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
  readonly requests: Run[] = [];
  /** Sequences that are not closed, oldest first. */
  readonly open = new Set<Tokens>();

  /** Milliseconds that a step holds the event loop. */
  constructor(readonly slow = 0) {}

  get caches(): number[][] {
    return Array.from(this.open, ({ tokens }) => [...tokens]);
  }

  sequence(): Tokens {
    return new Tokens(this);
  }

  step(request: StepRequest): Float32Array[] {
    checkStep(this, request);
    const until = performance.now() + this.slow;
    while (performance.now() < until) { /* it computes */ }
    return request.runs.map((run) => {
      assert.ok(run.sequence instanceof Tokens);
      this.requests.push({ ...run, tokens: run.tokens.slice() });
      run.sequence.tokens = [...run.sequence.tokens.slice(0, run.position), ...run.tokens];
      const logits = new Float32Array(logitRows(run) * VOCABULARY);
      if (logits.length > 0) logits[(run.tokens.at(-1)! + 1) % VOCABULARY] = 1;
      return logits;
    });
  }

  async stepAsync(request: StepRequest, signal?: AbortSignal): Promise<Float32Array[]> {
    signal?.throwIfAborted();
    await Promise.resolve();
    return this.step(request);
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

Deno.test("a prompt goes in in chunks, says so, and only its last token needs logits", async () => {
  const lengths = fc.integer({ min: 1, max: 12 }), chunks = fc.integer({ min: 1, max: 9 });
  await fc.assert(fc.asyncProperty(lengths, chunks, async (length, chunk) => {
    const executor = new Counting();
    using session = new Session(executor, { chunk });
    const tokens = Int32Array.from({ length }, (_, i) => i % VOCABULARY);
    const progress: [number, number][] = [];
    const logits = await session.prefill(tokens, { onProgress: (...at) => progress.push(at) });
    assert.equal(logits.indexOf(1), length);
    assert.equal(session.position, length);
    assert.deepEqual(executor.caches, [[...tokens]]);
    const most = Math.min(4, chunk);
    assert.ok(executor.requests.every((r) => r.tokens.length <= most && r.as === "prefill"));
    const count = Math.ceil(length / most);
    assert.deepEqual(
      executor.requests.map((r) => r.logits),
      [...Array<string>(count - 1).fill("none"), "last"],
    );
    assert.deepEqual(
      progress,
      Array.from({ length: count }, (_, n) => [Math.min((n + 1) * most, length), length]),
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
  assert.deepEqual(executor.caches, [[3, 4, 5, 6, 7, 8]]);
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

Deno.test("generation stops at a text, which may straddle tokens", async () => {
  const { tokens, text, statistics } = await run(new Session(new Counting()), [0], {
    tokenizer: digits,
    stopTexts: ["4 5", "2 4"],
  });
  assert.deepEqual([tokens, text, statistics.end], [[1, 2, 3, 4, 5], "1 2 3 ", "text"]);
  // What was held back is shown when something else ends the text.
  const held = await run(new Session(new Counting()), [0], {
    tokenizer: digits,
    stopTexts: ["3 5"],
    maxTokens: 3,
  });
  assert.deepEqual([held.text, held.statistics.end], ["1 2 3 ", "length"]);
  await assert.rejects(run(new Session(new Counting()), [0], { stopTexts: ["a"] }), /need a tokenizer/);
});

Deno.test("a sampler begins after the prompt and what was cached before it", async () => {
  const begun: number[][] = [];
  class Noting extends Sampler {
    override begin(prompt: Iterable<number>): void {
      begun.push([...prompt]);
    }
  }
  const session = new Session(new Counting());
  await session.prefill(Int32Array.of(2, 5));
  await run(session, [1], { sampler: new Noting(), maxTokens: 3 });
  assert.deepEqual(begun, [[2, 5, 1]]);
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
  await assert.rejects(session.prefill(new Int32Array(13)), refuses(/13 tokens, the context holds 12/));
  await assert.rejects(run(session, Array<number>(20).fill(0)), refuses(/20 tokens, the context holds 12/));
  await assert.rejects(session.prefill(new Int32Array(0)), refuses(/no tokens/));
  assert.equal(executor.requests.length, 0);
  await session.prefill(new Int32Array(10));
  await assert.rejects(session.prefill(new Int32Array(3)), refuses(/3 tokens after 10 earlier ones/));
  await assert.rejects(session.prefill(Int32Array.of(16)), refuses(/token 16 at index 0/));
  assert.equal(session.position, 10);
});

Deno.test("going back forgets what came after", async () => {
  const executor = new Counting();
  const session = new Session(executor);
  await session.prefill(Int32Array.of(1, 2, 3));
  session.rewind(1);
  session.decode(7);
  assert.deepEqual(executor.caches, [[1, 7]]);
  for (const position of [3, -1, 0.5]) assert.throws(() => session.rewind(position), HcinferError);
});

Deno.test("two sessions on one executor do not see each other, and a fork is a third", async () => {
  const executor = new Counting();
  const first = new Session(executor);
  using second = new Session(executor);
  await first.prefill(Int32Array.of(1, 2, 3));
  await second.prefill(Int32Array.of(8));
  first.decode(4);
  using fork = first.fork();
  fork.rewind(2);
  fork.decode(5);
  second.decode(6);
  first.decode(7);
  assert.deepEqual(executor.caches, [[1, 2, 3, 4, 7], [8, 6], [1, 2, 5]]);
  assert.deepEqual([first.position, second.position, fork.position], [5, 2, 3]);
  first[Symbol.dispose]();
  assert.equal(executor.open.size, 2);
  fork.decode(9);
  assert.deepEqual(executor.caches, [[8, 6], [1, 2, 5, 9]]);
});

Deno.test("a prefix is reused where tokens agree and were run as a prompt", async () => {
  const executor = new Counting();
  using session = new Session(executor);
  await session.prefill(Int32Array.of(1, 2, 3));
  session.decode(4);
  session.decode(5);
  // 4 and 5 were decoded: as prompt tokens their keys and values are others.
  using fork = session.fork();
  using conversation = session.fork();
  assert.equal(conversation.reuse(Int32Array.of(1, 2, 3, 4, 5, 6), { decoded: true }), 5);
  assert.equal(conversation.reuse(Int32Array.of(1, 2, 3, 4, 9, 6), { decoded: true }), 4);
  assert.equal(session.reuse(Int32Array.of(1, 2, 3, 4, 5, 6)), 3);
  assert.equal(session.position, 3);
  assert.equal(fork.reuse(Int32Array.of(1, 2, 9)), 2);
  await session.prefill(Int32Array.of(4, 5, 6));
  assert.equal(session.reuse(Int32Array.of(1, 2, 3, 4, 5, 6, 7)), 6);
  // The last token is left to run: its logits are wanted.
  assert.equal(session.reuse(Int32Array.of(1, 2, 3, 4, 5, 6)), 5);
  assert.equal(session.reuse(Int32Array.of(7)), 0);
  assert.equal(session.reuse(new Int32Array(0)), 0);
  assert.equal(session.position, 0);
});

Deno.test("an aborted prompt keeps its whole chunks, and can go on from there", async () => {
  const executor = new Counting();
  using session = new Session(executor);
  const controller = new AbortController();
  const reason = new Error("enough");
  const onProgress = (done: number) => {
    if (done === 8) controller.abort(reason);
  };
  const prompt = Int32Array.of(0, 1, 2, 3, 4, 5, 6, 7, 8, 9);
  await assert.rejects(session.prefill(prompt, { signal: controller.signal, onProgress }), reason);
  assert.equal(session.position, 8);
  assert.equal((await session.prefill(prompt.subarray(session.reuse(prompt)))).indexOf(1), 10);
  assert.deepEqual(executor.caches, [[...prompt]]);
});

Deno.test("generation ends with its signal in the prompt too, and other errors come through", async () => {
  const executor = new Counting();
  using session = new Session(executor);
  const controller = new AbortController();
  const onProgress = () => controller.abort();
  const prompt = [0, 1, 2, 3, 4, 5, 6, 7];
  const { tokens, statistics } = await run(session, prompt, { signal: controller.signal, onProgress });
  assert.deepEqual([tokens, statistics.end, session.position], [[], "aborted", 4]);
  await assert.rejects(run(session, [99]), HcinferError);
});

Deno.test("long steps leave the event loop free", async () => {
  const executor = new Counting(25);
  using session = new Session(executor);
  const sync: StepRequest[] = [];
  const step = executor.step.bind(executor);
  const stepAsync = executor.stepAsync.bind(executor);
  let inside = false;
  executor.stepAsync = async (request, signal) => {
    inside = true;
    try {
      return await stepAsync(request, signal);
    } finally {
      inside = false;
    }
  };
  executor.step = (request) => {
    if (!inside) sync.push(request);
    return step(request);
  };
  await run(session, [0], { maxTokens: 6 });
  // One step shows that steps are long.
  assert.equal(sync.length, 1);
});
