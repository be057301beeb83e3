import assert from "node:assert/strict";
import { openBundle } from "../compiler/bundle.ts";
import { Batch, type BatchOptions } from "../runtime/batch.ts";
import { ChatTemplate } from "../runtime/chat.ts";
import { createCpuExecutor } from "../runtime/executors/cpu/executor.ts";
import { Session } from "../runtime/session.ts";
import { Tokenizer } from "../runtime/tokenizer.ts";
import { withLetterBundle } from "../tests/fixtures/letter_model.ts";
import { type AppOptions, createApp } from "./app.ts";
import { Metrics } from "./metrics.ts";
import { Service } from "./service.ts";

interface Served {
  /** A request by its path and body: a string as it is, other values as JSON. */
  readonly ask: (path: string, body?: unknown, init?: RequestInit) => Promise<Response>;
  /** What the model answers to a prompt, greedily. */
  readonly alone: (prompt: string, maxTokens: number) => Promise<string>;
  readonly batch: Batch;
  readonly errors: readonly unknown[];
}

/** The letter model, a token a letter, behind the API. */
async function served(
  test: (served: Served) => Promise<void>,
  { template = true, options = {}, limits = {} }: {
    readonly template?: boolean;
    readonly options?: Partial<AppOptions>;
    readonly limits?: BatchOptions;
  } = {},
): Promise<void> {
  await withLetterBundle(async (path) => {
    const bundle = openBundle(path);
    using executor = createCpuExecutor(bundle, { threads: 1, corrections: "auto", cachePositions: 1024 });
    const tokenizer = Tokenizer.open(bundle, executor.model.vocabularySize);
    const batch = new Batch(executor, limits), metrics = new Metrics(() => batch.state);
    const errors: unknown[] = [];
    const service = new Service({
      name: "letters",
      created: 1,
      batch,
      tokenizer,
      template: template ? ChatTemplate.find(bundle, tokenizer.config) : undefined,
      defaults: {},
      stopTokens: [],
    });
    const app = createApp(service, { metrics, onError: (error) => errors.push(error), ...options });
    const ask: Served["ask"] = async (url, body, init) => {
      if (body === undefined) return await app.request(url, init);
      const headers = { "Content-Type": "application/json", ...init?.headers };
      const text = typeof body === "string" || body instanceof Uint8Array ? body : JSON.stringify(body);
      return await app.request(url, { method: "POST", ...init, headers, body: text as BodyInit });
    };
    const alone: Served["alone"] = async (prompt, maxTokens) => {
      using session = new Session(executor);
      let text = "";
      const options = { tokenizer, maxTokens, stopTokens: [] };
      for await (const piece of session.generate(tokenizer.encode(prompt), options)) text += piece.text;
      return text;
    };
    try {
      await test({ ask, alone, batch, errors });
      await batch[Symbol.asyncDispose]();
    } finally {
      bundle.close();
    }
  });
}

const greedy = { model: "letters", temperature: 0 } as const;
const chat = { ...greedy, messages: [{ role: "user", content: "ab" }] } as const;
/** As the letter model's template writes it. */
const WRITTEN = "user: ab! ";

/** The JSON of a stream's events; "[DONE]" ends it. */
async function events(response: Response) {
  assert.match(response.headers.get("Content-Type") ?? "", /^text\/event-stream/);
  const lines = (await response.text()).trim().split("\n\n").map((event) => event.replace(/^data: /, ""));
  assert.equal(lines.pop(), "[DONE]");
  return lines.map((line) => JSON.parse(line));
}

Deno.test("completions: a text goes on, whole and as a stream", () =>
  served(async ({ ask, alone }) => {
    const expected = await alone("abc", 12);
    const whole = await (await ask("/v1/completions", { ...greedy, prompt: "abc", max_tokens: 12 })).json();
    assert.equal(whole.object, "text_completion");
    assert.match(whole.id, /^cmpl-/);
    const [{ text, finish_reason, logprobs }] = whole.choices;
    assert.deepEqual([text, finish_reason, logprobs], [expected, "length", null]);
    assert.deepEqual(whole.usage, {
      prompt_tokens: 3,
      completion_tokens: 12,
      total_tokens: 15,
      prompt_tokens_details: { cached_tokens: 0 },
    });
    const body = { ...greedy, prompt: ["abc"], max_tokens: 12, stream: true };
    const chunks = await events(await ask("/v1/completions", body));
    assert.equal(chunks.map(({ choices }) => choices[0].text).join(""), expected);
    assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
    const ids = await (await ask("/v1/completions", { ...greedy, prompt: [0, 1, 2], max_tokens: 12 })).json();
    assert.equal(ids.choices[0].text, expected);
    // The API's default length.
    const short = await (await ask("/v1/completions", { ...greedy, prompt: "abc" })).json();
    assert.equal(short.usage.completion_tokens, 16);
  }));

Deno.test("chat: messages in the model's template, roles, parts, streams with usage", () =>
  served(async ({ ask, alone }) => {
    const expected = await alone(WRITTEN, 9);
    const whole = await (await ask("/v1/chat/completions", { ...chat, max_tokens: 9 })).json();
    assert.equal(whole.object, "chat.completion");
    assert.deepEqual(whole.choices[0].message, { role: "assistant", content: expected, refusal: null });
    const parts = [{ role: "user", content: [{ type: "text", text: "a" }, { type: "text", text: "b" }] }];
    const body = { ...greedy, messages: parts, max_completion_tokens: 9, stream: true };
    const chunks = await events(
      await ask("/v1/chat/completions", { ...body, stream_options: { include_usage: true } }),
    );
    assert.deepEqual(chunks[0].choices[0].delta, { role: "assistant", content: "" });
    const usage = chunks.pop();
    assert.deepEqual([usage.choices, usage.usage.completion_tokens], [[], 9]);
    assert.ok(chunks.every((chunk) => chunk.object === "chat.completion.chunk" && chunk.usage === null));
    assert.equal(chunks.map(({ choices }) => choices[0].delta.content ?? "").join(""), expected);
    assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
    const plain = await events(await ask("/v1/chat/completions", body));
    assert.ok(plain.every((chunk) => !("usage" in chunk)));
    // Without a length, until the context is full: 64 positions, and a token that is not cached.
    const full = await (await ask("/v1/chat/completions", chat)).json();
    assert.deepEqual([full.usage.total_tokens, full.choices[0].finish_reason], [65, "length"]);
  }));

Deno.test("stops, seeds, penalties and probabilities", () =>
  served(async ({ ask, alone }) => {
    const complete = async (more: object) => {
      const response = await ask("/v1/completions", { ...greedy, prompt: "abc", max_tokens: 20, ...more });
      assert.equal(response.status, 200, await response.clone().text());
      return (await response.json()).choices[0];
    };
    const expected = await alone("abc", 20), stop = expected.slice(5, 8);
    const stopped = await complete({ stop: [stop, "never there"] });
    assert.deepEqual([stopped.text, stopped.finish_reason], [
      expected.slice(0, expected.indexOf(stop)),
      "stop",
    ]);
    const drawn = { temperature: 1.5, seed: 7, top_p: 0.9 };
    assert.equal((await complete(drawn)).text, (await complete(drawn)).text);
    assert.notEqual((await complete({ ...drawn, seed: 8 })).text, (await complete(drawn)).text);
    const varied = await complete({ frequency_penalty: 2, presence_penalty: 2 });
    assert.ok(new Set(varied.text).size > new Set(expected).size);
    const { logprobs } = await complete({ logprobs: 3, max_tokens: 4 });
    assert.deepEqual(logprobs.text_offset, [0, 1, 2, 3]);
    for (const [i, top] of logprobs.top_logprobs.entries()) {
      const values = Object.values<number>(top);
      assert.equal(values.length, 3);
      assert.equal(Math.max(...values), logprobs.token_logprobs[i]);
      assert.ok(values.every((value) => value < 0) && values.reduce((sum, v) => sum + Math.exp(v), 0) <= 1);
    }
    const response = await ask("/v1/chat/completions", {
      ...chat,
      logprobs: true,
      top_logprobs: 1,
      max_tokens: 2,
    });
    const { content } = (await response.json()).choices[0].logprobs;
    assert.equal(content.length, 2);
    assert.deepEqual(content[0].top_logprobs[0], {
      token: content[0].token,
      logprob: content[0].logprob,
      bytes: [...new TextEncoder().encode(content[0].token)],
    });
    // The most is 20.
    assert.equal((await ask("/v1/completions", { ...greedy, prompt: "a", logprobs: 21 })).status, 400);
  }));

Deno.test("what is wrong with a request is said in the API's shape", () =>
  served(async ({ ask, errors }) => {
    const refused = async (
      response: Response,
      status: number,
      message: RegExp,
      code: string | null = null,
    ) => {
      const { error } = await response.json();
      assert.equal(response.status, status, JSON.stringify(error));
      assert.match(error.message, message);
      assert.equal(error.code, code);
      assert.equal(error.type, status === 500 ? "server_error" : "invalid_request_error");
    };
    const path = "/v1/completions", good = { ...greedy, prompt: "a" };
    await refused(await ask(path, "{"), 400, /^the body is no JSON: /);
    await refused(await ask(path, "[".repeat(1000)), 400, /nested more than 32 deep/);
    await refused(await ask(path, Uint8Array.of(0x22, 0xff, 0x22) as unknown), 400, /the body is no JSON/);
    await refused(await ask(path, "7"), 400, /^the body: /, "invalid_value");
    await refused(
      await ask(path, good, { headers: { "Content-Type": "text/plain" } }),
      400,
      /Content-Type is text\/plain, expected application\/json/,
    );
    await refused(
      await ask(path, { ...good, temprature: 1 }),
      400,
      /^temprature is not supported/,
      "unknown_parameter",
    );
    await refused(await ask(path, { ...good, temperature: 3 }), 400, /^temperature: /, "invalid_value");
    await refused(await ask(path, { ...good, n: 2 }), 400, /^n: /, "invalid_value");
    await refused(
      await ask(path, { ...good, model: "gpt-4" }),
      404,
      /no model "gpt-4" here, only "letters"/,
      "model_not_found",
    );
    await refused(
      await ask(path, { ...good, prompt: "a".repeat(64) }),
      400,
      /64 tokens, the context holds 64/,
    );
    await refused(
      await ask(path, { ...good, prompt: [1, 41] }),
      400,
      /token 41 is outside the vocabulary of 41/,
    );
    await refused(await ask(path, { ...good, prompt: "" }), 400, /no tokens/);
    await refused(await ask(path, "x".repeat(5 << 20)), 413, /at most 4194304 bytes/);
    await refused(await ask("/v1/engines"), 404, /there is no GET \/v1\/engines here/, "not_found");
    await refused(await ask("/v1/models/other"), 404, /no model "other"/, "model_not_found");
    await refused(
      await ask("/v1/chat/completions", { ...chat, messages: [] }),
      400,
      /^messages: /,
      "invalid_value",
    );
    const format = { ...chat, response_format: { type: "json_object" } };
    await refused(await ask("/v1/chat/completions", format), 400, /^response_format.type: /, "invalid_value");
    assert.deepEqual(errors, []);
    assert.equal((await ask(path, good)).status, 200);
  }));

Deno.test("a model without a template completes and does not chat", () =>
  served(async ({ ask }) => {
    const response = await ask("/v1/chat/completions", chat);
    assert.equal(response.status, 400);
    assert.match((await response.json()).error.message, /no chat template: use \/v1\/completions/);
  }, { template: false }));

Deno.test("a key, where one is set; not for health, metrics and the page", () =>
  served(async ({ ask }) => {
    const status = async (path: string, key?: string) =>
      (await ask(path, undefined, { headers: key === undefined ? {} : { Authorization: key } })).status;
    assert.equal(await status("/v1/models"), 401);
    assert.equal(await status("/v1/models", "Bearer wrong"), 401);
    assert.equal(await status("/v1/models", "Bearer "), 401);
    assert.equal(await status("/v1/models", "bearer s3cret"), 200);
    assert.deepEqual([await status("/health"), await status("/metrics"), await status("/")], [200, 200, 200]);
  }, { options: { apiKey: "s3cret" } }));

Deno.test("a server for this machine alone answers by its own names", () =>
  served(async ({ ask }) => {
    for (
      const [host, status] of [["localhost:8080", 200], ["127.0.0.1", 200], ["[::1]:8080", 200], [
        "evil.example",
        403,
      ]]
    ) {
      assert.equal((await ask(`http://${host}/v1/models`)).status, status, `${host}`);
    }
  }, { options: { isLocal: true } }));

Deno.test("who comes when the queue is full is told to come again", () =>
  served(async ({ ask }) => {
    const body = { ...greedy, prompt: "abc", max_tokens: 30 };
    const answers = await Promise.all(Array.from({ length: 6 }, () => ask("/v1/completions", body)));
    const refused = answers.filter(({ status }) => status !== 200);
    assert.ok(refused.length > 0 && refused.length < 6);
    for (const response of refused) {
      assert.deepEqual([response.status, response.headers.get("Retry-After")], [429, "1"]);
      assert.equal((await response.json()).error.type, "rate_limit_error");
    }
  }, { limits: { slots: 1, queue: 2 } }));

Deno.test("clients that go away leave nothing; metrics count", () =>
  served(async ({ ask, batch, errors }) => {
    const body = { ...greedy, prompt: "abc", max_tokens: 60 };
    const gone = new AbortController();
    const asked = ask("/v1/completions", body, { signal: gone.signal });
    setTimeout(() => gone.abort(), 1);
    await Promise.allSettled([asked]);
    const stream = await ask("/v1/completions", { ...body, stream: true });
    const reader = stream.body!.getReader();
    await reader.read();
    await reader.cancel();
    for (let n = 0; n < 1000 && batch.state.answers > 0; n++) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const { kept: _, ...state } = batch.state;
    assert.deepEqual(state, { waiting: 0, prompts: 0, answers: 0 });
    assert.deepEqual(errors, []);
    await ask("/v1/completions", { ...body, max_tokens: 5 });
    const text = await (await ask("/metrics")).text();
    assert.match(text, /hcinfer_requests_total\{route="\/v1\/completions",status="200"\} [12]/);
    assert.match(text, /hcinfer_tokens_total\{kind="prompt"\} \d/);
    assert.match(text, /hcinfer_texts\{state="waiting"\} 0/);
  }));
