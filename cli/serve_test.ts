import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import process from "node:process";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import OpenAI from "openai";
import { assertFailed, hcinfer } from "../tests/command_line.ts";
import { withLetterBundle } from "../tests/fixtures/letter_model.ts";

/** `hcinfer serve` as a process of its own, on a free port. */
class Server implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #over: Promise<number | null>;
  said = "";

  constructor(bundle: string, args: readonly string[] = [], env: Readonly<Record<string, string>> = {}) {
    const main = fileURLToPath(new URL("../main.ts", import.meta.url));
    const all = ["run", "-A", main, "serve", bundle, "--port", "0", "--threads", "1", ...args];
    this.#child = spawn(Deno.execPath(), all, {
      env: { ...process.env, ...env },
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#child.stderr!.on("data", (bytes: Uint8Array) => this.said += new TextDecoder().decode(bytes));
    this.#over = new Promise((resolve) => this.#child.once("close", (code) => resolve(code)));
  }

  /** Its address, once it listens. */
  async url(): Promise<string> {
    for (let n = 0; n < 2000; n++) {
      const [found] = /http:\/\/\S+/.exec(this.said) ?? [];
      if (found !== undefined) return found;
      if (this.#child.exitCode !== null) break;
      await setTimeout(10);
    }
    throw new Error(`no server: ${this.said}`);
  }

  /** Its exit code after a signal. */
  async end(signal: "SIGTERM" | "SIGINT" = "SIGTERM"): Promise<number | null> {
    // `kill` of the child itself would report the signal in place of the code.
    process.kill(this.#child.pid!, signal);
    return await this.#over;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#over;
  }
}

async function served(
  test: (server: Server, client: OpenAI, bundle: string) => Promise<void>,
  args: readonly string[] = [],
): Promise<void> {
  await withLetterBundle(async (bundle) => {
    await using server = new Server(bundle, args);
    const client = new OpenAI({ baseURL: `${await server.url()}/v1`, apiKey: "none", maxRetries: 0 });
    await test(server, client, bundle);
  });
}

const model = "bundle";
const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: "user", content: "ab" }];

Deno.test("serve: the openai client lists, completes, chats and streams, many at a time", () =>
  served(async (server, client) => {
    assert.match(server.said, /^bundle at http:\/\/127\.0\.0\.1:\d+ \(API: \/v1, a page to chat: \/\)/);
    const models = await client.models.list();
    assert.deepEqual(models.data.map(({ id }) => id), [model]);
    const options = { model, messages, temperature: 0, max_tokens: 12 } as const;
    const whole = await client.chat.completions.create(options);
    const text = whole.choices[0]!.message.content!;
    assert.equal(text.length, 12);
    assert.equal(whole.usage?.completion_tokens, 12);
    const stream = await client.chat.completions.create({ ...options, stream: true });
    let streamed = "";
    for await (const chunk of stream) streamed += chunk.choices[0]?.delta.content ?? "";
    assert.equal(streamed, text);
    const completion = await client.completions.create({
      model,
      prompt: "user: ab! ",
      temperature: 0,
      max_tokens: 12,
    });
    assert.equal(completion.choices[0]!.text, text);
    const many = await Promise.all(Array.from({ length: 20 }, () => client.chat.completions.create(options)));
    assert.ok(many.every(({ choices }) => choices[0]!.message.content === text));
    await assert.rejects(
      client.chat.completions.create({ ...options, model: "other" }),
      (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
    );
    const page = await (await fetch(await server.url())).text();
    assert.match(page, /<title>hcinfer<\/title>/);
  }));

Deno.test("serve: a signal ends it when answers are over", () =>
  served(async (server, client) => {
    const options = { model, messages, temperature: 0 } as const;
    const stream = await client.chat.completions.create({ ...options, stream: true });
    const chunks = stream[Symbol.asyncIterator]();
    await chunks.next();
    const ended = server.end();
    let finish: string | null | undefined;
    for (let next = await chunks.next(); !next.done; next = await chunks.next()) {
      finish = next.value.choices[0]?.finish_reason ?? finish;
    }
    assert.equal(finish, "length");
    assert.equal(await ended, 143);
    assert.match(server.said, /ending: no more requests are taken\n$/);
  }));

Deno.test("serve: what a user gets wrong", () =>
  served(async (server, _, bundle) => {
    const port = new URL(await server.url()).port;
    assertFailed(
      await hcinfer(["serve", bundle, "--port", port]),
      6,
      new RegExp(`cannot listen on 127\\.0\\.0\\.1 port ${port}: .*; give another --port`),
    );
    assertFailed(await hcinfer(["serve", bundle, "--port", "70000"]), 2, /--port 70000: expected 0 to 65535/);
    assertFailed(await hcinfer(["serve", bundle, "--slots", "0"]), 2, /whole number of at least 1/);
    assertFailed(await hcinfer(["serve", `${bundle}-none`]), 5, /bundle-none/);
    assert.equal(await server.end("SIGINT"), 130);
  }));

Deno.test("serve: a key from the environment", () =>
  withLetterBundle(async (bundle) => {
    await using server = new Server(bundle, ["--name", "letters"], { HCINFER_API_KEY: "s3cret" });
    const baseURL = `${await server.url()}/v1`;
    const wrong = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(async () => await wrong.models.list(), OpenAI.AuthenticationError);
    const right = new OpenAI({ baseURL, apiKey: "s3cret" });
    assert.equal((await right.models.list()).data[0]!.id, "letters");
  }));
