/** hcinfer chat: several turns with a model, each answered as it is computed. */
import { Command, Option } from "commander";
import process from "node:process";
import { createInterface } from "node:readline";
import { HcinferError } from "../compiler/errors.ts";
import { ChatTemplate } from "../runtime/chat.ts";
import { type AnswerStatistics, Conversation } from "../runtime/conversation.ts";
import { samplingDefaults } from "../runtime/generation_config.ts";
import type { Sampler } from "../runtime/sampler.ts";
import { Session } from "../runtime/session.ts";
import { type RunOptions, whole, withRunOptions } from "./arguments.ts";
import { chosenSampler, type GeneratingOptions, PROMPT_CHUNK, withGeneratingOptions } from "./generating.ts";
import { abortable, Interrupted } from "./interrupted.ts";
import { OpenModel } from "./opening.ts";
import { reader } from "./reader.ts";
import { dim, printable, Progress, writeOut } from "./terminal.ts";

export interface ChatOptions extends RunOptions, GeneratingOptions {
  readonly maxTokens: number;
  readonly system?: string;
}

/** Of an answer. */
export const CHAT_MAX_TOKENS = 1024;

export function chatCommand(): Command {
  const command = new Command("chat")
    .description(
      "Talk with a model in several turns. Without a terminal, each line of standard input is a turn.",
    )
    .argument("<bundle>", "folder that compile wrote")
    .addOption(
      new Option("--max-tokens <n>", "most tokens of an answer").argParser(whole()).default(CHAT_MAX_TOKENS),
    )
    .option("--system <text>", "system message");
  return withRunOptions(withGeneratingOptions(command))
    .addHelpText(
      "after",
      `
${HELP}
Examples:
  hcinfer chat bundles/smol
  hcinfer chat bundles/smol --system "Answer in one sentence." --temperature 0.5
  printf 'Hello!\\nAnd in French?\\n' | hcinfer chat bundles/smol`,
    )
    .action(chat);
}

const HELP = `In a chat:
  /reset      forget the conversation
  /quit       end (also Ctrl-D, or Ctrl-C twice)
  /help       show this
  Ctrl-C      stop an answer
  \\           at the end of a line: the message goes on in the next
`;

export async function chat(path: string, options: ChatOptions): Promise<void> {
  using model = OpenModel.open(path, options);
  const tokenizer = model.tokenizer();
  const template = ChatTemplate.find(model.bundle, tokenizer.config);
  const { sampler, note } = chosenSampler(options, samplingDefaults(model.bundle));
  using session = new Session(model.executor, { chunk: PROMPT_CHUNK });
  const conversation = new Conversation(session, { tokenizer, template, system: options.system });
  const { name, contextLength: longest } = model.executor.model;
  if (template === undefined) {
    say(`${name} has no chat template: it continues your text instead of answering.`);
  }
  const talk = new Talk(conversation, session, sampler, options, longest);
  if (process.stdin.isTTY !== true) return await talk.overLines();
  say(dim(`${name}, a context of ${session.executor.contextLength} tokens; /help shows what can be typed`));
  if (note !== undefined) say(dim(note));
  await talk.atTerminal();
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** One conversation and whoever types. */
class Talk {
  /** Lines of a message that goes on. */
  #begun = "";

  constructor(
    readonly conversation: Conversation,
    readonly session: Session,
    readonly sampler: Sampler,
    readonly options: ChatOptions,
    /** The longest context the model was made for. */
    readonly longest: number,
  ) {}

  /** Every line of standard input is a turn. An error or a signal ends it. */
  async overLines(): Promise<void> {
    await abortable(async (signal) => {
      const lines = createInterface({ input: process.stdin, crlfDelay: Infinity });
      signal.addEventListener("abort", () => lines.close());
      for await (const line of lines) {
        if (await this.#take(line, signal) === "quit" || signal.aborted) break;
      }
      lines.close();
    });
  }

  /** A line editor. Errors are shown, and Ctrl-C ends no more than an answer. */
  async atTerminal(): Promise<void> {
    const read = reader("(Ctrl-C again, Ctrl-D or /quit ends the chat)");
    const ignore = () => {};
    // A second Ctrl-C while an answer is ending.
    process.on("SIGINT", ignore);
    try {
      while (true) {
        say("");
        const line = await read(this.#begun === "" ? "> " : ". ");
        if (line === undefined) return;
        if (line.abandoned) this.#begun = "";
        else if (await this.#answerOrSay(line.text) === "quit") return;
      }
    } finally {
      process.off("SIGINT", ignore);
    }
  }

  async #answerOrSay(line: string): Promise<"quit" | undefined> {
    try {
      return await abortable((signal) => this.#take(line, signal));
    } catch (error) {
      if (error instanceof Interrupted && error.exitCode === 130) return undefined;
      if (!(error instanceof HcinferError) || error.kind !== "input") throw error;
      say(printable(error.message));
      return undefined;
    }
  }

  /** Does what a line says; "quit" when it says so. */
  async #take(line: string, signal: AbortSignal): Promise<"quit" | undefined> {
    const [, command] = /^\/(\w+)\s*$/.exec(line) ?? [];
    if (command !== undefined && this.#begun === "") return this.#command(command);
    if (line.endsWith("\\")) {
      this.#begun += `${line.slice(0, -1)}\n`;
      return undefined;
    }
    const text = this.#begun + line;
    this.#begun = "";
    if (text.trim() !== "") await this.#answer(text, signal);
    return undefined;
  }

  #command(name: string): "quit" | undefined {
    if (name === "quit" || name === "exit") return "quit";
    if (name === "reset") this.conversation.reset();
    if (name === "reset") say(dim("The conversation begins anew."));
    else if (name === "help") say(HELP.trimEnd());
    else say(`There is no /${name}; /help shows what there is. A space before it makes it text.`);
    return undefined;
  }

  async #answer(text: string, signal: AbortSignal): Promise<void> {
    const { maxTokens, stop = [] } = this.options;
    const progress = new Progress("prompt");
    const onProgress = (done: number, total: number) => {
      if (done < total) progress.show(done, total, "tokens");
      else progress.finish();
    };
    const options = { sampler: this.sampler, maxTokens, stopTexts: stop, signal, onProgress };
    try {
      const statistics = await this.conversation.ask(text, options, writeOut).catch((error) => {
        throw error instanceof HcinferError && error.kind === "input"
          ? new HcinferError("input", `${error.message}: ${this.#more()}`, { cause: error })
          : error;
      });
      process.stdout.write("\n");
      this.#close(statistics);
    } finally {
      progress.finish();
    }
  }

  /** What to do when the context is full. */
  #more(): string {
    const { contextLength } = this.session.executor;
    const longer = contextLength < this.longest
      ? `, --context ${this.longest} at the start makes room for more`
      : "";
    return `/reset begins a new one${longer}`;
  }

  #close(statistics: AnswerStatistics): void {
    const { end, generatedTokens, decodeTokensPerSecond } = statistics;
    const { contextLength } = this.session.executor;
    if (end === "context") say(`The context of ${contextLength} tokens is full: ${this.#more()}.`);
    if (process.stderr.isTTY !== true) return;
    const parts = [`${this.session.position} of ${contextLength} tokens`];
    if (generatedTokens > 1) parts.unshift(`${decodeTokensPerSecond.toFixed(1)} tokens/s`);
    if (end === "stop" && generatedTokens === 1) parts.push("an empty answer");
    if (end === "length") parts.push(`cut off at --max-tokens ${this.options.maxTokens}`);
    if (end === "aborted") parts.push("stopped");
    say(dim(parts.join(", ")));
  }
}
