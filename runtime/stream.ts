/**
 * Text from tokens as they come. A token of a byte-level vocabulary can end within a UTF-8 character; its text then
 * waits for the tokens that complete it. The pieces join to what decoding all tokens at once gives.
 *
 * Method: decode the tokens since the last piece together with those of the piece before (decoders treat the first
 * token of a text specially), and emit what is new; a U+FFFD at the end may be an incomplete character, so it is held
 * back. The window this needs is a few tokens long, so the cost of a token does not grow with the text.
 */

/** A tokenizer, as far as streams need one. */
export interface TextDecoding {
  decode(ids: Iterable<number>): string;
}

const REPLACEMENT = "\uFFFD";

/** The text of one sequence of tokens; push them in order. */
export class TextStream {
  readonly #tokenizer: TextDecoding;
  #window: number[] = [];
  /** Where in `#window` the tokens after the last complete piece begin. */
  #fresh = 0;
  /** Length of the window's text that was emitted. */
  #emitted = 0;

  constructor(tokenizer: TextDecoding) {
    this.#tokenizer = tokenizer;
  }

  /** The text that `id` completes; empty while a character is incomplete. */
  push(id: number): string {
    this.#window.push(id);
    const text = this.#tokenizer.decode(this.#window);
    const complete = !text.endsWith(REPLACEMENT);
    const end = complete ? text.length : text.length - 1;
    const piece = text.slice(this.#emitted, end);
    this.#emitted = Math.max(this.#emitted, end);
    if (complete && piece !== "") this.#advance();
    return piece;
  }

  /** What is left when no more tokens come: U+FFFD for an incomplete character. The stream is then new. */
  end(): string {
    const piece = this.#tokenizer.decode(this.#window).slice(this.#emitted);
    this.#window = [];
    this.#fresh = 0;
    this.#emitted = 0;
    return piece;
  }

  /** Drops the tokens of earlier pieces; those of this one stay as the context of the next. */
  #advance(): void {
    const context = this.#window.slice(this.#fresh);
    const text = this.#tokenizer.decode(context);
    // Context without text of its own would leave the next token the first of its text.
    if (text === "" || text.endsWith(REPLACEMENT)) return;
    this.#window = context;
    this.#fresh = context.length;
    this.#emitted = text.length;
  }
}
