/**
 * Chat templates: Jinja (through @huggingface/jinja) from the model's folder, `chat_template.jinja` before the
 * `chat_template` of tokenizer_config.json, as in transformers.
 */
import { join } from "node:path";
import { Template } from "@huggingface/jinja";
import { HcinferError } from "../compiler/errors.ts";
import type { TextFiles } from "./text_files.ts";
import type { TokenizerConfig } from "./tokenizer.ts";

export interface Message {
  readonly role: "system" | "user" | "assistant" | "tool" | (string & Record<never, never>);
  readonly content: string;
}

export class ChatTemplate {
  readonly #template: Template;
  readonly #source: string;
  readonly #config: TokenizerConfig;

  /** @throws {HcinferError} "checkpoint": `text`, found in the file `source`, is not a template */
  constructor(text: string, source: string, config: TokenizerConfig) {
    this.#source = source;
    this.#config = config;
    this.#template = this.#attempt(() => new Template(text));
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
   */
  render(
    messages: readonly Message[],
    { addGenerationPrompt = true, variables = {} }: {
      readonly addGenerationPrompt?: boolean;
      readonly variables?: Readonly<Record<string, unknown>>;
    } = {},
  ): string {
    const special = {
      bos_token: this.#config.bos_token ?? "",
      eos_token: this.#config.eos_token ?? "",
    };
    return this.#attempt(() =>
      this.#template.render({
        ...special,
        ...variables,
        messages: messages.map((m) => ({ ...m })),
        add_generation_prompt: addGenerationPrompt,
      })
    );
  }

  /** Broken templates give bare TypeErrors, and templates may refuse a conversation: both get the file's name. */
  #attempt<T>(action: () => T): T {
    try {
      return action();
    } catch (cause) {
      throw new HcinferError(
        "checkpoint",
        `the chat template of ${this.#source} failed: ${(cause as Error).message}`,
        { cause },
      );
    }
  }
}
