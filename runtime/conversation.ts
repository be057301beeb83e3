/**
 * Several turns with a model on one session, whose keys and values are kept: a turn computes only what is new in it.
 *
 * The whole conversation is written anew for every turn, by the model's chat template or, without one, as plain text. When
 * that begins with the text that the session has seen, the tokens of this text are taken as they were (text that the model
 * wrote may have other tokens when it is read), and only the rest is turned into tokens. When it does not (templates may
 * trim answers or drop their reasoning), all of it is, and computed from where tokens differ.
 */
import { HcinferError } from "../compiler/errors.ts";
import type { ChatTemplate, Message } from "./chat.ts";
import type { GenerateOptions, GenerationStatistics, Session } from "./session.ts";
import type { TextDecoding } from "./stream.ts";

/** A tokenizer, as far as conversations need one. */
export interface TextCoding extends TextDecoding {
  encode(text: string, options?: { readonly addSpecialTokens?: boolean }): Int32Array;
}

export interface ConversationOptions {
  readonly tokenizer: TextCoding;
  /** Without one, turns are joined as lines of plain text, which the model continues. */
  readonly template?: ChatTemplate | undefined;
  /** The system message; it needs a template. */
  readonly system?: string | undefined;
}

/** Statistics of one answer; `promptTokens` are those that had to be computed. */
export interface AnswerStatistics extends GenerationStatistics {
  /** Tokens of the conversation before the answer whose keys and values were kept. */
  readonly cachedTokens: number;
}

export class Conversation {
  readonly #session: Session;
  readonly #options: ConversationOptions;
  /** What was said, the system message first. */
  #messages: readonly Message[] = [];
  /** A text, and the tokens by which the session has seen it. */
  #seen: { readonly text: string; readonly tokens: readonly number[] } = { text: "", tokens: [] };

  /** @throws {HcinferError} "input": a system message without a template */
  constructor(session: Session, options: ConversationOptions) {
    if (options.system !== undefined && options.template === undefined) {
      throw new HcinferError(
        "input",
        "the model has no chat template, so there is no place for a system message: leave it out",
      );
    }
    this.#session = session;
    this.#options = options;
    this.reset();
  }

  /** Forgets every turn; a system message stays. */
  reset(): void {
    const { system } = this.#options;
    this.#messages = system === undefined ? [] : [{ role: "system", content: system }];
  }

  /**
   * The answer to `text`, piece by piece to `onText`. An answer that was aborted stays as far as it came; when it had not
   * begun, or an error is thrown, the turn is forgotten.
   * @throws {HcinferError} "input": the conversation does not fit the context any more; nothing is computed then
   */
  async ask(
    text: string,
    options: Omit<GenerateOptions, "tokenizer">,
    onText: (text: string) => void,
  ): Promise<AnswerStatistics> {
    const { tokenizer } = this.#options;
    const messages = [...this.#messages, { role: "user", content: text }];
    const written = this.#write(messages);
    const prompt = this.#encode(written);
    const { contextLength } = this.#session.executor;
    if (prompt.length > contextLength) {
      throw new HcinferError(
        "input",
        `the conversation would have ${prompt.length} tokens with this, the context holds ${contextLength}`,
      );
    }
    const cachedTokens = this.#session.reuse(prompt, { decoded: true });
    const generation = this.#session.generate(prompt.subarray(cachedTokens), { ...options, tokenizer });
    const tokens = [...prompt];
    let answer = "";
    for await (const piece of generation) {
      if (piece.token !== undefined) tokens.push(piece.token);
      answer += piece.text;
      onText(piece.text);
    }
    const { statistics } = generation;
    const { end, generatedTokens } = statistics;
    if (end !== "aborted" || generatedTokens > 0) {
      this.#messages = [...messages, { role: "assistant", content: answer }];
      // Tokens of an answer that was cut have more text than it.
      const isCut = end === "aborted" || end === "text";
      this.#seen = isCut ? { text: written, tokens: [...prompt] } : { text: written + answer, tokens };
    }
    return { ...statistics, cachedTokens };
  }

  /** The conversation up to where an answer begins. */
  #write(messages: readonly Message[]): string {
    const { template } = this.#options;
    if (template !== undefined) return template.render(messages);
    // An answer goes on where the line before it ends.
    return messages.map(({ role, content }, i) => role === "user" && i > 0 ? `\n${content}` : content).join(
      "",
    );
  }

  #encode(written: string): Int32Array {
    const { tokenizer, template } = this.#options;
    const { text, tokens } = this.#seen;
    if (text === "" || !written.startsWith(text)) {
      return tokenizer.encode(written, { addSpecialTokens: template === undefined });
    }
    const rest = tokenizer.encode(written.slice(text.length), { addSpecialTokens: false });
    return Int32Array.from([...tokens, ...rest]);
  }
}
