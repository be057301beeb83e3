/** hcinfer serve: the OpenAI API for a bundle, on this machine. */
import { createAdaptorServer, type ServerType } from "@hono/node-server";
import { Command, Option } from "commander";
import type { AddressInfo } from "node:net";
import { basename, resolve } from "node:path";
import process from "node:process";
import { HcinferError } from "../compiler/errors.ts";
import { Batch } from "../runtime/batch.ts";
import { ChatTemplate } from "../runtime/chat.ts";
import { samplingDefaults } from "../runtime/generation_config.ts";
import { createApp, LOCAL } from "../server/app.ts";
import { Metrics } from "../server/metrics.ts";
import { Service } from "../server/service.ts";
import { type RunOptions, whole, withRunOptions } from "./arguments.ts";
import { abortable, Interrupted } from "./interrupted.ts";
import { OpenModel } from "./opening.ts";
import { printable } from "./terminal.ts";

export interface ServeOptions extends RunOptions {
  readonly host: string;
  readonly port: number;
  readonly slots: number;
  readonly queue: number;
  readonly cache?: number;
  readonly name?: string;
  readonly apiKey?: string;
  readonly drain: number;
}

const MOST_PORT = 65_535;
/** Positions of all texts that are more than one context, where nothing is said; on a CPU, room that is not used costs nothing. */
const MOST_ROOM = 32_768;

export function serveCommand(): Command {
  const command = new Command("serve")
    .description("Answer requests of the OpenAI API on this machine, several at a time.")
    .argument("<bundle>", "folder that compile wrote")
    .addOption(
      new Option("--host <address>", "where to listen; 0.0.0.0 is every network").default("127.0.0.1"),
    )
    .addOption(new Option("--port <n>", "0 takes a free one").argParser(whole(0)).default(8080))
    .addOption(
      new Option("--slots <n>", "requests that are answered at a time").argParser(whole()).default(8),
    )
    .addOption(new Option("--queue <n>", "requests that may wait for a slot").argParser(whole()).default(64))
    .addOption(
      new Option("--cache <positions>", "tokens of all texts together (default: 4 contexts,\nup to 32768)")
        .argParser(
          whole(),
        ),
    )
    .option("--name <model>", "what clients call the model (default: the bundle's folder)")
    .addOption(
      new Option("--api-key <key>", "what clients must send; better in the environment").env(
        "HCINFER_API_KEY",
      ),
    )
    .addOption(
      new Option("--drain <seconds>", "how long answers may go on after a signal to end").argParser(whole(0))
        .default(30),
    );
  return withRunOptions(command)
    .addHelpText(
      "after",
      `
Routes: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics, and
a page to chat on at /.

Examples:
  hcinfer serve bundles/smol
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "smol", "messages": [{"role": "user", "content": "Hello!"}]}'`,
    )
    .action(serve);
}

export async function serve(path: string, options: ServeOptions): Promise<void> {
  const { host, port, slots, queue, drain } = options;
  if (port > MOST_PORT) throw new HcinferError("usage", `--port ${port}: expected 0 to ${MOST_PORT}`);
  const room = (context: number) => options.cache ?? Math.max(context, Math.min(4 * context, MOST_ROOM));
  using model = OpenModel.open(path, { ...options, roomFor: room });
  const tokenizer = model.tokenizer();
  await using batch = new Batch(model.executor, { slots, queue });
  const name = options.name ?? basename(resolve(path));
  const service = new Service({
    name,
    created: Math.floor(Date.now() / 1000),
    batch,
    tokenizer,
    template: ChatTemplate.find(model.bundle, tokenizer.config),
    defaults: samplingDefaults(model.bundle),
    stopTokens: model.executor.model.stopTokens,
  });
  const metrics = new Metrics(() => batch.state);
  const app = createApp(service, {
    metrics,
    apiKey: options.apiKey,
    isLocal: LOCAL.test(host) || host === "::1",
    onError: (error) => say(`error: ${error instanceof Error ? error.stack ?? error.message : error}`),
  });
  const server = await listening(createAdaptorServer({ fetch: app.fetch }), host, port);
  const { port: bound } = server.address() as AddressInfo;
  const shown = host.includes(":") ? `[${host}]` : host;
  say(`${name} at http://${shown}:${bound} (API: /v1, a page to chat: /); Ctrl-C ends it`);
  try {
    await abortable((signal) =>
      new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()))
    );
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    say("ending: no more requests are taken");
    const isOver = await within(drain, Promise.all([closed(server), batch[Symbol.asyncDispose]()]));
    if (!isOver) say(`answers that were not over after ${drain} s were cut off`);
    if (!isOver) process.exit(error.exitCode);
    throw error;
  }
}

async function listening(server: ServerType, host: string, port: number): Promise<ServerType> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(port, host, resolve);
  try {
    await promise;
  } catch (cause) {
    const message = `cannot listen on ${host} port ${port}: ${
      (cause as Error).message
    }; give another --port or --host`;
    throw new HcinferError("environment", message, { cause });
  }
  server.off("error", reject);
  return server;
}

/** Takes no more connections, and returns when those that have something to read are over. */
function closed(server: ServerType): Promise<void> {
  const over = new Promise<void>((resolve) => server.close(() => resolve()));
  if ("closeIdleConnections" in server) server.closeIdleConnections();
  return over;
}

/** Whether `work` was over in so many seconds. */
async function within(seconds: number, work: Promise<unknown>): Promise<boolean> {
  const late = Promise.withResolvers<boolean>();
  const timer = setTimeout(() => late.resolve(false), 1000 * seconds);
  const isOver = await Promise.race([work.then(() => true), late.promise]);
  clearTimeout(timer);
  return isOver;
}

function say(text: string): void {
  process.stderr.write(`${printable(text)}\n`);
}
