/** hcinfer run: continues a prompt, or answers it. */
import { Command, Option } from "commander";
import { readFileSync } from "node:fs";
import process from "node:process";
import { type Bundle, openBundle } from "../compiler/bundle.ts";
import { HcinferError } from "../compiler/errors.ts";
import { limitsOf } from "../compiler/memory.ts";
import { ChatTemplate } from "../runtime/chat.ts";
import { requireDevice } from "../runtime/devices.ts";
import { samplingDefaults } from "../runtime/generation_config.ts";
import { type GenerationStatistics, Session } from "../runtime/session.ts";
import { Tokenizer } from "../runtime/tokenizer.ts";
import { given, type RunOptions, whole, withRunOptions } from "./arguments.ts";
import { chat, CHAT_MAX_TOKENS } from "./chat.ts";
import { chosenSampler, type GeneratingOptions, PROMPT_CHUNK, withGeneratingOptions } from "./generating.ts";
import { abortable } from "./interrupted.ts";
import { openExecutorOn } from "./opening.ts";
import { dim, Progress, secondsText, writeOut } from "./terminal.ts";

export function runCommand(): Command {
  const command = new Command("run")
    .description("Continue a prompt. The text goes to standard output, speed to standard error.")
    .argument("<bundle>", "folder that compile wrote")
    .argument("[prompt]", '"-" reads standard input; without one, a terminal starts a chat')
    .addOption(new Option("--max-tokens <n>", "most tokens to generate").argParser(whole()).default(256));
  return withRunOptions(withGeneratingOptions(command))
    .option("--chat", "put the prompt into the model's chat template")
    .addOption(new Option("--system <text>", "system message").implies({ chat: true }))
    .option("--quiet", "no speed on standard error")
    .addHelpText(
      "after",
      `
Examples:
  hcinfer run bundles/tiny "The compiler" --max-tokens 64
  hcinfer run bundles/tiny "The compiler" --temperature 0.8 --seed 7
  hcinfer run bundles/tiny "1. Read" --stop "3." --repetition-penalty 1.1
  echo "Why is the sky blue?" | hcinfer run bundles/chat - --chat`,
    )
    .action(run);
}

interface Options extends RunOptions, GeneratingOptions {
  readonly maxTokens: number;
  readonly chat?: true;
  readonly system?: string;
  readonly quiet?: true;
}

async function run(
  path: string,
  prompt: string | undefined,
  options: Options,
  command: Command,
): Promise<void> {
  if (prompt === undefined) {
    if (process.stdin.isTTY !== true) {
      throw new HcinferError("usage", 'there is no prompt: give one, or "-" to read standard input');
    }
    const maxTokens = given(command, "maxTokens") ? options.maxTokens : CHAT_MAX_TOKENS;
    return await chat(path, { ...options, maxTokens });
  }
  const text = prompt === "-" ? readFileSync(0, "utf8") : prompt;
  requireDevice(options.device);
  using bundle = openBundle(path);
  const { sampler, note } = chosenSampler(options, samplingDefaults(bundle));
  const { tokenizer, ids, contextLength } = encode(bundle, text, options);
  using executor = openExecutorOn(bundle, { ...options, contextLength });
  const session = new Session(executor, { chunk: PROMPT_CHUNK });
  if (note !== undefined && process.stderr.isTTY === true && !options.quiet) {
    process.stderr.write(`${dim(note)}\n`);
  }
  await abortable(async (signal) => {
    const progress = new Progress("prompt");
    if (ids.length > PROMPT_CHUNK) progress.show(0, ids.length, "tokens");
    const generation = session.generate(ids, {
      sampler,
      maxTokens: options.maxTokens,
      stopTexts: options.stop ?? [],
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
    text: "a stop text",
    length: "",
    context: "the end of the context",
    aborted: "an interrupt",
  };
  const end = statistics.end ? ends[statistics.end] : "";
  return parts.join("; ") + (end ? `; ended by ${end}` : "");
}
