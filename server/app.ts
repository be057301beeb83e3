/**
 * The server's routes: the OpenAI API for one model, its health and metrics, and a page to chat on. Nothing in a request names a
 * file or a host.
 */
import { createHash, randomUUID, timingSafeEqual } from "node:crypto";
import { type Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { streamSSE } from "hono/streaming";
import { parseJson } from "../compiler/json.ts";
import { ApiError, apiError } from "./errors.ts";
import { chatAnswer, completionAnswer, type Shape } from "./answers.ts";
import type { Metrics } from "./metrics.ts";
import { PAGE } from "./page.ts";
import { ChatRequest, CompletionRequest } from "./requests.ts";
import type { Service } from "./service.ts";
import type { Piece } from "./text.ts";

export interface AppOptions {
  /** What clients must send as a bearer token; undefined: nothing. */
  readonly apiKey?: string | undefined;
  readonly metrics: Metrics;
  /** Whether the server is for this machine alone: then only requests by its own names are answered. Default false. */
  readonly isLocal?: boolean;
  /** Of a request's body. */
  readonly mostBytes?: number;
  /** Told of errors that are the server's own. */
  readonly onError?: (error: unknown) => void;
}

/** Room for the text of the longest contexts in use, and no more. */
const MOST_BYTES = 4 << 20;
const JSON_LIMITS = { values: 300_000, depth: 32 };
const RETRY_SECONDS = 1;
const CLIENT_GONE = 499;

export function createApp(service: Service, options: AppOptions): Hono {
  const { metrics, apiKey, mostBytes = MOST_BYTES, onError = () => {} } = options;
  const app = new Hono();
  const fail = (c: Context, thrown: unknown) => {
    // Nobody reads it: the status is for the metrics.
    if (c.req.raw.signal.aborted) return new Response(null, { status: CLIENT_GONE });
    const error = apiError(thrown);
    if (error.status === 500) onError(thrown);
    if (error.status === 429 || error.status === 503) c.header("Retry-After", `${RETRY_SECONDS}`);
    if (error.status === 401) c.header("WWW-Authenticate", "Bearer");
    return c.json(error.body(), error.status);
  };
  app.onError((error, c) => fail(c, error));
  app.notFound((c) => {
    return fail(
      c,
      new ApiError(404, `there is no ${c.req.method} ${c.req.path} here`, { code: "not_found" }),
    );
  });
  app.use(async (c, next) => {
    await next();
    metrics.answered(c.req.routePath, c.res.status);
  });
  if (options.isLocal) app.use(localOnly);
  if (apiKey !== undefined) app.use("/v1/*", keyCheck(apiKey));
  app.use(
    "/v1/*",
    bodyLimit({
      maxSize: mostBytes,
      onError: (c) => fail(c, new ApiError(413, `a request has at most ${mostBytes} bytes`)),
    }),
  );

  app.get("/", (c) => {
    c.header(
      "Content-Security-Policy",
      "default-src 'self'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'",
    );
    return c.html(PAGE);
  });
  app.get("/health", (c) => c.json({ status: "ok", ...service.batch.state }));
  app.get(
    "/metrics",
    async (c) => c.text(await metrics.text(), 200, { "Content-Type": metrics.contentType }),
  );

  const model = { id: service.name, object: "model", created: service.created, owned_by: "hcinfer" };
  app.get("/v1/models", (c) => c.json({ object: "list", data: [model] }));
  app.get("/v1/models/:id{.+}", (c) => {
    requireModel(service, c.req.param("id"));
    return c.json(model);
  });
  app.post("/v1/completions", async (c) => {
    const request = CompletionRequest.parse(await bodyOf(c));
    requireModel(service, request.model);
    const pieces = service.complete(request, c.req.raw.signal);
    return await reply(c, pieces, request, completionAnswer(service.name, `cmpl-${randomUUID()}`));
  });
  app.post("/v1/chat/completions", async (c) => {
    const request = ChatRequest.parse(await bodyOf(c));
    requireModel(service, request.model);
    const pieces = service.chat(request, c.req.raw.signal);
    return await reply(c, pieces, request, chatAnswer(service.name, `chatcmpl-${randomUUID()}`));
  });
  return app;

  async function reply(
    c: Context,
    pieces: ReadableStream<Piece>,
    { stream, stream_options }: Pick<ChatRequest, "stream" | "stream_options">,
    shape: Shape,
  ): Promise<Response> {
    const began = performance.now();
    const reader = pieces.getReader();
    // What is wrong with a request shows before its first piece, when there is still a status to say it with.
    const first = await reader.read();
    metrics.firstToken((performance.now() - began) / 1000);
    const read = async function* () {
      for (let next = first; !next.done; next = await reader.read()) {
        if (next.value.end) metrics.ended(next.value.end.usage, (performance.now() - began) / 1000);
        yield next.value;
      }
    };
    if (stream !== true) {
      const all: Piece[] = [];
      for await (const piece of read()) all.push(piece);
      return c.json(shape.whole(all));
    }
    const withUsage = stream_options?.include_usage === true;
    return streamSSE(c, async (sse) => {
      sse.onAbort(() => void reader.cancel());
      try {
        for (const chunk of shape.opening(withUsage)) await sse.writeSSE({ data: JSON.stringify(chunk) });
        for await (const piece of read()) {
          for (const chunk of shape.chunks(piece, withUsage)) {
            await sse.writeSSE({ data: JSON.stringify(chunk) });
          }
        }
        await sse.writeSSE({ data: "[DONE]" });
      } catch (thrown) {
        if (sse.aborted) return;
        const error = apiError(thrown);
        if (error.status === 500) onError(thrown);
        await sse.writeSSE({ data: JSON.stringify(error.body()) });
      }
    });
  }
}

function requireModel({ name }: Service, asked: string): void {
  if (asked === name) return;
  throw new ApiError(404, `there is no model ${JSON.stringify(asked)} here, only ${JSON.stringify(name)}`, {
    param: "model",
    code: "model_not_found",
  });
}

/**
 * A body's JSON. Only what calls itself so: a web page of another origin can send other types without asking, and would make this
 * server work for it.
 */
async function bodyOf(c: Context): Promise<unknown> {
  const type = c.req.header("Content-Type") ?? "none";
  if (!/^application\/json\s*(;|$)/i.test(type)) {
    throw new ApiError(400, `the Content-Type is ${type}, expected application/json`);
  }
  const bytes = new Uint8Array(await c.req.arrayBuffer());
  try {
    return parseJson(bytes, JSON_LIMITS);
  } catch (error) {
    throw new ApiError(400, `the body is no JSON: ${(error as Error).message}`);
  }
}

/** A page of another origin could otherwise reach the server by a name of its own that leads to this machine (DNS rebinding). */
async function localOnly(c: Context, next: () => Promise<void>): Promise<void> {
  const { hostname } = new URL(c.req.url);
  if (!LOCAL.test(hostname)) {
    throw new ApiError(
      403,
      `this server answers at localhost, not at ${hostname}: give it a --host to serve others`,
    );
  }
  await next();
}

/** Names of this machine to itself, as URL writes them. */
export const LOCAL = /^(localhost|127(\.\d+){3}|\[::1\])$/;

/** Compares digests, in constant time. */
function keyCheck(apiKey: string) {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  const expected = digest(apiKey);
  return async (c: Context, next: () => Promise<void>) => {
    const [, key = ""] = /^Bearer (.*)$/i.exec(c.req.header("Authorization") ?? "") ?? [];
    if (!timingSafeEqual(digest(key), expected)) {
      throw new ApiError(401, "the API key is missing or wrong", { code: "invalid_api_key" });
    }
    await next();
  };
}
