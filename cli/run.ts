/** hcinfer run: continues a prompt, or answers it. */
import { Command, Option } from "commander";
import { readFileSync } from "node:fs";
import process from "node:process";
import { type Bundle, openBundle } from "../compiler/bundle.ts";
import { HcinferError } from "../compiler/errors.ts";
import { limitsOf } from "../compiler/memory.ts";
import { ChatTemplate } from "../runtime/chat.ts";
import { requireDevice } from "../runtime/devices.ts";
import { Sampler } from "../runtime/sampler.ts";
import { type GenerationStatistics, Session } from "../runtime/session.ts";
import { Tokenizer } from "../runtime/tokenizer.ts";
import { between, given, type RunOptions, whole, withRunOptions } from "./arguments.ts";
import { abortable } from "./interrupted.ts";
import { openExecutorOn } from "./opening.ts";
import { Progress, secondsText, writeOut } from "./terminal.ts";

export function runCommand(): Command {
  return withRunOptions(
    new Command("run")
      .description("Continue a prompt. The text goes to standard output, speed to standard error.")
      .argument("<bundle>", "folder that compile wrote")
      .argument("<prompt>", '"-" reads standard input')
      .addOption(new Option("--max-tokens <n>", "most tokens to generate").argParser(whole()).default(256))
      .addOption(
        new Option("--temperature <t>", "0 takes the most probable token").argParser(between(0, 1000))
          .default(
            0,
          ),
      )
      .addOption(new Option("--top-k <n>", "sample from the n most probable tokens").argParser(whole()))
      .addOption(
        new Option("--top-p <p>", "from the fewest whose probabilities reach p").argParser(between(0, 1)),
      )
      .addOption(
        new Option("--min-p <p>", "from those p times as probable as the best").argParser(between(0, 1)),
      )
      .addOption(new Option("--seed <s>", "the same seed gives the same text").argParser(whole(0)))
      .option("--chat", "put the prompt into the model's chat template")
      .addOption(new Option("--system <text>", "system message").implies({ chat: true }))
      .option("--quiet", "no speed on standard error")
      .addHelpText(
        "after",
        `
Examples:
  hcinfer run bundles/tiny "The compiler" --max-tokens 64
  hcinfer run bundles/tiny "The compiler" --temperature 0.8 --top-p 0.95 --seed 7
  echo "Why is the sky blue?" | hcinfer run bundles/chat - --chat`,
      )
      .action(run),
  );
}

/** Tokens of a prompt between two looks at its progress: within 5 % of the speed of longer chunks. */
const PROMPT_CHUNK = 256;

interface Options extends RunOptions {
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly seed?: number;
  readonly chat?: true;
  readonly system?: string;
  readonly quiet?: true;
}

async function run(path: string, prompt: string, options: Options, command: Command): Promise<void> {
  const filters = ["topK", "topP", "minP"].filter((name) => given(command, name));
  if (options.temperature === 0 && filters.length > 0) {
    throw new HcinferError("usage", "--top-k, --top-p and --min-p need sampling: add --temperature 0.8, say");
  }
  const sampler = new Sampler({
    temperature: options.temperature,
    ...(options.topK === undefined ? {} : { topK: options.topK }),
    ...(options.topP === undefined ? {} : { topP: options.topP }),
    ...(options.minP === undefined ? {} : { minP: options.minP }),
    ...(options.seed === undefined ? {} : { seed: options.seed }),
  });
  const text = prompt === "-" ? readFileSync(0, "utf8") : prompt;
  requireDevice(options.device);
  using bundle = openBundle(path);
  const { tokenizer, ids, contextLength } = encode(bundle, text, options);
  using executor = openExecutorOn(bundle, { ...options, contextLength });
  const session = new Session(executor, { chunk: PROMPT_CHUNK });
  await abortable(async (signal) => {
    const progress = new Progress("prompt");
    if (ids.length > PROMPT_CHUNK) progress.show(0, ids.length, "tokens");
    const generation = session.generate(ids, {
      sampler,
      maxTokens: options.maxTokens,
      tokenizer,
      signal,
      onProgress: (done, total) => done < total ? progress.show(done, total, "tokens") : progress.finish(),
    });
    for await (const piece of generation) writeOut(piece.text);
    progress.finish();
    process.stdout.write("\n");
    if (!options.quiet) process.stderr.write(`${speedText(generation.statistics)}\n`);
  });
}

/** Token ids of the prompt, and a context just large enough, so that a short run takes little memory. */
function encode(
  bundle: Bundle,
  text: string,
  options: Options,
): { tokenizer: Tokenizer; ids: Int32Array; contextLength: number } {
  const { plan: { model } } = bundle;
  const tokenizer = Tokenizer.open(bundle, model.vocabularySize);
  const ids = options.chat
    ? tokenizer.encode(ChatTemplate.open(bundle, tokenizer.config).render(messages(text, options.system)), {
      addSpecialTokens: false,
    })
    : tokenizer.encode(text);
  const most = limitsOf(model, { contextLength: options.context ?? model.contextLength }).contextLength;
  if (ids.length > most) {
    throw new HcinferError(
      "input",
      `the prompt has ${ids.length} tokens, the context holds ${most}: shorten the prompt`,
    );
  }
  return { tokenizer, ids, contextLength: Math.min(ids.length + options.maxTokens, most) };
}

function messages(text: string, system: string | undefined) {
  const user = { role: "user", content: text };
  return system === undefined ? [user] : [{ role: "system", content: system }, user];
}

function speedText(statistics: GenerationStatistics): string {
  const { promptTokens, generatedTokens, secondsToFirstToken, promptTokensPerSecond } = statistics;
  if (generatedTokens === 0 && statistics.end === "aborted") {
    return `ended by an interrupt within the prompt of ${promptTokens} tokens`;
  }
  const parts = [
    `prompt ${promptTokens} tokens, ${promptTokensPerSecond.toFixed(0)} tokens/s`,
    `first token after ${secondsText(secondsToFirstToken)}`,
  ];
  if (generatedTokens > 1) {
    parts.push(`then ${generatedTokens - 1} at ${statistics.decodeTokensPerSecond.toFixed(1)} tokens/s`);
  }
  const ends = {
    stop: "a stop token",
    length: "",
    context: "the end of the context",
    aborted: "an interrupt",
  };
  const end = statistics.end ? ends[statistics.end] : "";
  return parts.join("; ") + (end ? `; ended by ${end}` : "");
}
