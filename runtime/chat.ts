/**
 * Chat templates: Jinja (through @huggingface/jinja) from the model's files, `chat_template.jinja`
 * before the `chat_template` of tokenizer_config.json, as in transformers. A template is a program, so it has limits.
 */
import { join } from "node:path";
import { Template } from "@huggingface/jinja";
import { HcinferError } from "../compiler/errors.ts";
import type { TextFiles } from "./text_files.ts";
import { secondsFor, type TimeLimit, withinTime } from "./time_limit.ts";
import type { TokenizerConfig } from "./tokenizer.ts";

/** The largest published templates have 30 kB. */
const MOST_TEMPLATE_CHARACTERS = 1 << 20;

/** Some ten times the longest context that models have. */
const MOST_RENDERED_CHARACTERS = 1 << 26;

/** One turn of a conversation. */
export interface Message {
  readonly role: "system" | "user" | "assistant" | "tool" | (string & Record<never, never>);
  readonly content: string;
}

/** How a model's conversations are written as text. */
export class ChatTemplate {
  readonly #template: Template;
  readonly #source: string;
  readonly #config: TokenizerConfig;

  /** @throws {HcinferError} "checkpoint": `text`, found in the file `source`, is not a template */
  constructor(text: string, source: string, config: TokenizerConfig) {
    this.#source = source;
    this.#config = config;
    this.#template = this.#attempt("reading", text.length, () => {
      bound("it", text, MOST_TEMPLATE_CHARACTERS);
      return new Template(text);
    });
  }

  /** The template among `files`, or undefined where there is none: a base model, which only continues text. */
  static find(files: TextFiles, config: TokenizerConfig): ChatTemplate | undefined {
    const bytes = files.file("chat_template.jinja");
    if (bytes) {
      return new ChatTemplate(
        new TextDecoder().decode(bytes),
        join(files.path, "chat_template.jinja"),
        config,
      );
    }
    const { chat_template: found } = config;
    const text = Array.isArray(found) ? found.find((t) => t.name === "default")?.template : found;
    if (text === undefined || text === null) return undefined;
    return new ChatTemplate(text, join(files.path, "tokenizer_config.json"), config);
  }

  /** Like `find`. @throws {HcinferError} "input": there is none */
  static open(files: TextFiles, config: TokenizerConfig): ChatTemplate {
    const found = ChatTemplate.find(files, config);
    if (found) return found;
    throw new HcinferError(
      "input",
      `${files.path} has no chat template (no chat_template.jinja, no chat_template in tokenizer_config.json): ` +
        "the model was not made for chat. Give it plain text to continue",
    );
  }

  /**
   * The text of a conversation, special tokens included: encode it with `addSpecialTokens: false`. With
   * `addGenerationPrompt` (default) it ends where the assistant's answer begins. `variables` are passed on.
   * @throws {HcinferError} "checkpoint": the template fails, refuses the conversation, or takes too long
   */
  render(
    messages: readonly Message[],
    { addGenerationPrompt = true, variables = {} }: {
      readonly addGenerationPrompt?: boolean;
      readonly variables?: Readonly<Record<string, unknown>>;
    } = {},
  ): string {
    const given = {
      bos_token: this.#config.bos_token ?? "",
      eos_token: this.#config.eos_token ?? "",
      ...variables,
      messages: messages.map((message) => ({ ...message })),
      add_generation_prompt: addGenerationPrompt,
    };
    const characters = messages.reduce((sum, { content }) => sum + content.length, 0);
    return this.#attempt("rendering", characters, () => {
      const rendered = this.#template.render(given);
      bound("what it wrote", rendered, MOST_RENDERED_CHARACTERS);
      return rendered;
    });
  }

  /** Broken templates give bare TypeErrors, and templates may refuse a conversation: both get the file's name. */
  #attempt<T>(doing: string, characters: number, action: () => T): T {
    const limit: TimeLimit = {
      seconds: secondsFor(characters),
      kind: "checkpoint",
      doing: `${doing} the chat template of ${this.#source}`,
      advice: "it does not end. Copy the template that came with the weights, or give plain text to continue",
    };
    try {
      return withinTime(limit, action);
    } catch (cause) {
      if (cause instanceof HcinferError) throw cause;
      const message = `the chat template of ${this.#source} failed: ${(cause as Error).message}`;
      throw new HcinferError("checkpoint", message, { cause });
    }
  }
}

function bound(what: string, text: string, most: number): void {
  if (text.length > most) throw new Error(`${what} has ${text.length} characters, more than ${most}`);
}
