import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";
import { refusal } from "../tests/fixtures/errors.ts";
import { RandomModels, someTokens } from "../tests/parity/random_models.ts";
import { Batch, type BatchOptions, Busy } from "./batch.ts";
import { type CpuExecutor, createCpuExecutor } from "./executors/cpu/executor.ts";
import { Sampler } from "./sampler.ts";
import { Session } from "./session.ts";

const MODEL = { vocabulary: 97, context: 256 } as const;

async function withExecutor(
  test: (executor: CpuExecutor, batch: (options?: BatchOptions) => Batch) => Promise<void>,
  cachePositions = 2048,
): Promise<void> {
  using models = new RandomModels();
  using bundle = await models.compile(MODEL, { weights: "q4", group: 32, correct: "sparse" });
  using executor = createCpuExecutor(bundle, { threads: 2, corrections: "inline", cachePositions });
  await test(executor, (options) => new Batch(executor, options));
}

interface Asked {
  readonly prompt: Int32Array;
  readonly seed?: number;
  readonly maxTokens?: number;
  readonly signal?: AbortSignal;
  readonly onToken?: (token: number) => boolean;
}

const samplerOf = ({ seed }: Asked) => new Sampler(seed === undefined ? {} : { temperature: 1, seed });

/** What a batch answers, with the tokens. */
async function answer(batch: Batch, asked: Asked) {
  const { prompt, maxTokens = 20, signal, onToken = () => true } = asked;
  const tokens: number[] = [];
  const found = await batch.answer({
    prompt,
    sampler: samplerOf(asked),
    maxTokens,
    stopTokens: [],
    onToken: (token) => {
      tokens.push(token);
      return onToken(token);
    },
    ...(signal ? { signal } : {}),
  });
  return { ...found, tokens };
}

/** What a text alone on the executor gives. */
async function alone(executor: CpuExecutor, asked: Asked): Promise<number[]> {
  using session = new Session(executor);
  const tokens: number[] = [];
  const { prompt, maxTokens = 20 } = asked;
  for await (
    const { token } of session.generate(prompt, { sampler: samplerOf(asked), maxTokens, stopTokens: [] })
  ) {
    if (token !== undefined) tokens.push(token);
  }
  return tokens;
}

const prompts = (count: number) =>
  Array.from(
    { length: count },
    (_, n) => someTokens(3 + 29 * n % 150, MODEL.vocabulary).map((id) => (id + n) % 97),
  );

Deno.test("requests at the same time get what each gets alone, for any slots and chunks", () =>
  withExecutor(async (executor, batch) => {
    const all = prompts(9).map((prompt, n): Asked =>
      n % 3 === 0 ? { prompt, maxTokens: 5 + 4 * n } : {
        prompt,
        seed: n,
        maxTokens: 5 + 4 * n,
      }
    );
    const expected: number[][] = [];
    for (const asked of all) expected.push(await alone(executor, asked));
    const free = executor.freePositions;
    for (const options of [{}, { slots: 1 }, { slots: 3, chunk: 7 }, { slots: 8, chunk: 64 }]) {
      await using working = batch(options);
      const found = await Promise.all(all.map((asked) => answer(working, asked)));
      assert.deepEqual(found.map(({ tokens }) => tokens), expected, JSON.stringify(options));
      assert.ok(
        found.every(({ end, generatedTokens, tokens }) =>
          end === "length" && generatedTokens === tokens.length
        ),
      );
    }
    assert.equal(executor.freePositions, free);
  }));

Deno.test("texts that begin alike are computed once, and come out the same", () =>
  withExecutor(async (executor, batch) => {
    const [prompt] = [someTokens(120, MODEL.vocabulary)];
    const other = prompt.map((id, at) => at < 100 ? id : (id + 1) % 97);
    await using working = batch();
    const first = await answer(working, { prompt });
    const again = await answer(working, { prompt });
    const longer = await answer(working, { prompt: other });
    assert.deepEqual([first, again, longer].map(({ cachedTokens }) => cachedTokens), [0, 119, 100]);
    assert.deepEqual(again.tokens, first.tokens);
    assert.deepEqual(longer.tokens, await alone(executor, { prompt: other }));
  }));

Deno.test("a cache for few texts serves many, one after the other", () =>
  withExecutor(async (executor, batch) => {
    const free = executor.freePositions;
    const all = prompts(12).map((prompt): Asked => ({ prompt, maxTokens: 30 }));
    const expected: number[][] = [];
    for (const asked of all) expected.push(await alone(executor, asked));
    {
      await using working = batch({ slots: 8 });
      const found = await Promise.all(all.map((asked) => answer(working, asked)));
      assert.deepEqual(found.map(({ tokens }) => tokens), expected);
    }
    assert.equal(executor.freePositions, free);
  }, 512));

Deno.test("who goes away leaves its place, and nobody else notices", () =>
  withExecutor(async (executor, batch) => {
    await using working = batch({ slots: 2 });
    const [one, two, three] = prompts(3);
    const gone = new AbortController(), reason = new Error("gone");
    const left = answer(working, {
      prompt: two!,
      maxTokens: 200,
      signal: gone.signal,
      onToken: () => (gone.abort(reason), true),
    });
    const stays = answer(working, { prompt: one! }), waits = answer(working, { prompt: three! });
    await assert.rejects(left, (error) => error === reason);
    assert.deepEqual((await stays).tokens, await alone(executor, { prompt: one! }));
    assert.deepEqual((await waits).tokens, await alone(executor, { prompt: three! }));
    await setTimeout(1);
    const { kept: _, ...state } = working.state;
    assert.deepEqual(state, { waiting: 0, prompts: 0, answers: 0 });
    await assert.rejects(
      answer(working, { prompt: one!, signal: AbortSignal.abort(reason) }),
      (e) => e === reason,
    );
  }));

Deno.test("a short prompt passes a long one, which is not held up for ever", () =>
  withExecutor(async (_, batch) => {
    await using working = batch({ slots: 8, chunk: 8 });
    const order: string[] = [];
    const ask = (name: string, length: number) =>
      answer(working, {
        prompt: someTokens(length, MODEL.vocabulary),
        maxTokens: 2,
        onToken: () => {
          if (!order.includes(name)) order.push(name);
          return true;
        },
      });
    const long = ask("long", 200);
    const short = Array.from({ length: 40 }, (_, n) => ask(`short ${n}`, 8));
    await Promise.all([long, ...short]);
    assert.equal(order[0], "short 0");
    assert.ok(order.indexOf("long") < 40, order.join());
  }));

Deno.test("an answer ends where it is told to, at a stop token and at the context's end", () =>
  withExecutor(async (executor, batch) => {
    await using working = batch();
    const prompt = someTokens(40, MODEL.vocabulary);
    const tokens = await alone(executor, { prompt });
    const cut = await answer(working, { prompt, onToken: () => false });
    assert.deepEqual([cut.end, cut.tokens], ["stop", tokens.slice(0, 1)]);
    const stopped = await working.answer({
      prompt,
      sampler: new Sampler(),
      maxTokens: 20,
      stopTokens: [tokens[0]!],
      onToken: () => assert.fail(),
    });
    assert.deepEqual([stopped.end, stopped.generatedTokens], ["stop", 1]);
    const full = await answer(working, { prompt, maxTokens: Infinity });
    assert.deepEqual([full.end, full.generatedTokens], ["context", executor.contextLength - 40 + 1]);
  }));

Deno.test("what cannot be answered is refused alone", () =>
  withExecutor(async (executor, batch) => {
    const working = batch({ slots: 1, queue: 2 });
    const good = [1, 2, 3].map((n) => answer(working, { prompt: Int32Array.of(n) }));
    await assert.rejects(answer(working, { prompt: new Int32Array(0) }), refusal("input", /no tokens/));
    await assert.rejects(
      answer(working, { prompt: Int32Array.of(1, 97) }),
      refusal("input", /token 97 is outside/),
    );
    await assert.rejects(
      answer(working, { prompt: new Int32Array(256) }),
      refusal("input", /256 tokens, the context holds 256/),
    );
    const results = await Promise.allSettled(good);
    assert.deepEqual(results.map(({ status }) => status), ["fulfilled", "fulfilled", "rejected"]);
    const [, , busy] = results;
    assert.ok(busy?.status === "rejected" && busy.reason instanceof Busy);
    // A callback that throws ends its own text.
    const failing = answer(working, {
      prompt: Int32Array.of(5),
      onToken: () => {
        throw new Error("no more");
      },
    });
    await assert.rejects(failing, /no more/);
    await working[Symbol.asyncDispose]();
    await assert.rejects(answer(working, { prompt: Int32Array.of(1) }), Busy);
    assert.equal(executor.freePositions, 2048);
  }));
