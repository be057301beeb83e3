/** hcinfer bench: how fast a bundle runs here, beside what the memory could give. */
import { Command, Option } from "commander";
import process from "node:process";
import { HcinferError } from "../compiler/errors.ts";
import { type RunOptions, whole, withRunOptions } from "./arguments.ts";
import { OpenModel } from "./opening.ts";
import { figures } from "./summary.ts";
import { bytesText, Progress, secondsText, table } from "./terminal.ts";

export function benchCommand(): Command {
  return withRunOptions(
    new Command("bench")
      .description("Measure prompt and decode speed with random tokens: medians of several repeats.")
      .argument("<bundle>", "folder that compile wrote")
      .addOption(new Option("--prompt <n>", "tokens of the prompt").argParser(whole()).default(512))
      .addOption(new Option("--tokens <n>", "tokens to decode").argParser(whole()).default(128))
      .addOption(new Option("--repeats <n>", "times to measure").argParser(whole()).default(5))
      .option("--json", "print the numbers as JSON")
      .addHelpText("after", "\nExample:\n  hcinfer bench bundles/tiny --threads 2 --corrections off")
      .action(bench),
  );
}

interface Options extends RunOptions {
  readonly prompt: number;
  readonly tokens: number;
  readonly repeats: number;
  readonly json?: true;
}

export interface Speed {
  /** Tokens per second of a prompt, and of decoding after it. */
  readonly prefill: number;
  readonly decode: number;
  /** Seconds of the prompt, with its logits. */
  readonly firstToken: number;
}

/**
 * One repeat on `ids` (default: random tokens); decoding starts after the prompt, so its context is `prompt` to
 * `prompt + tokens`.
 */
export function measureSpeed(
  model: OpenModel,
  prompt: number,
  tokens: number,
  ids = randomTokens(prompt + tokens, model.executor.model.vocabularySize),
): Speed {
  const { executor } = model;
  using sequence = executor.sequence();
  const started = performance.now();
  for (let position = 0; position < prompt; position += executor.capacity) {
    const end = Math.min(position + executor.capacity, prompt);
    const logits = end === prompt ? "last" : "none";
    executor.step({
      runs: [{ sequence, position, tokens: ids.slice(position, end), as: "prefill", logits }],
    });
  }
  const first = performance.now();
  for (let position = prompt; position < prompt + tokens; position++) {
    const tokens = ids.slice(position, position + 1);
    executor.step({ runs: [{ sequence, position, tokens, as: "decode", logits: "last" }] });
  }
  const ended = performance.now();
  return {
    prefill: prompt / (first - started) * 1000,
    decode: tokens / (ended - first) * 1000,
    firstToken: (first - started) / 1000,
  };
}

function randomTokens(count: number, vocabulary: number): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => (i * 97 + 5) % vocabulary);
}

export function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  return ((sorted[Math.ceil(middle) - 1] ?? NaN) + (sorted[Math.floor(middle)] ?? NaN)) / 2;
}

function bench(path: string, options: Options): void {
  const { prompt, tokens, repeats, threads, corrections } = options;
  using model = OpenModel.open(path, { ...options, contextLength: prompt + tokens });
  const { contextLength, name: executor, mode } = model.executor;
  if (prompt + tokens > contextLength) {
    throw new HcinferError(
      "usage",
      `--prompt ${prompt} and --tokens ${tokens} do not fit the context of ${contextLength} tokens`,
    );
  }
  const progress = new Progress("bench");
  const speeds: Speed[] = [];
  // The first run warms caches and clocks up and does not count.
  for (let repeat = 0; repeat <= repeats; repeat++) {
    progress.show(repeat, repeats + 1, `repeat ${repeat} of ${repeats}`);
    const speed = measureSpeed(model, prompt, tokens);
    if (repeat > 0) speeds.push(speed);
  }
  progress.finish();
  const { backboneBytes, headBytes, correctionBytesRead } = figures(model.bundle.plan);
  const bytesRead = backboneBytes + headBytes + (mode === "off" ? 0 : correctionBytesRead);
  const decode = median(speeds.map((speed) => speed.decode));
  if (options.json) {
    process.stdout.write(
      `${JSON.stringify({ executor, threads, corrections, mode, prompt, tokens, bytesRead, speeds })}\n`,
    );
    return;
  }
  const row = (name: string, numbers: number[]) => [
    name,
    ...[median(numbers), Math.min(...numbers), Math.max(...numbers)].map((n) => n.toFixed(1)),
  ];
  process.stdout.write(
    table(["tokens per second", "median", "least", "most"], [
      row(`prompt of ${prompt}`, speeds.map((speed) => speed.prefill)),
      row(`decode ${tokens} after it`, speeds.map((speed) => speed.decode)),
    ]) +
      `\n${bytesText(bytesRead)} of weights and corrections read per decoded token: ` +
      `${bytesText(bytesRead * decode)}/s\n` +
      `prompt to first token ${secondsText(median(speeds.map((speed) => speed.firstToken)))}, ` +
      `${executor}, corrections ${mode}, resident ${bytesText(process.memoryUsage().rss)}\n`,
  );
}
