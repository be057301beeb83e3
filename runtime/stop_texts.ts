/**
 * Texts that end an answer. They do not keep to tokens: a stop may begin within one and end within another, so what could be
 * the beginning of a stop is held back until more text decides.
 */
import { HcinferError } from "../compiler/errors.ts";

/** A filter for the text of one answer; give it every piece in order. */
export class StopTexts {
  readonly #texts: readonly string[];
  #held = "";
  #reached = false;

  /** @throws {HcinferError} "usage": an empty text */
  constructor(texts: readonly string[]) {
    if (texts.includes("")) throw new HcinferError("usage", "a stop text must have at least one character");
    this.#texts = texts;
  }

  /** Whether the answer has come to one. */
  get reached(): boolean {
    return this.#reached;
  }

  /** The text that is certain now: before a stop that `piece` completes, or without what may begin one. */
  push(piece: string): string {
    if (this.#reached) return "";
    const text = this.#held + piece;
    const found = this.#texts.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
    this.#reached = found.length > 0;
    const certain = this.#reached ? Math.min(...found) : text.length - this.#begun(text);
    this.#held = this.#reached ? "" : text.slice(certain);
    return text.slice(0, certain);
  }

  /** What was held back, when no more text comes. */
  end(): string {
    const rest = this.#held;
    this.#held = "";
    return rest;
  }

  /** Characters at the end of `text` with which a stop may begin. */
  #begun(text: string): number {
    const longest = (stop: string) => {
      let length = Math.min(stop.length - 1, text.length);
      while (length > 0 && !text.endsWith(stop.slice(0, length))) length--;
      return length;
    };
    return Math.max(0, ...this.#texts.map(longest));
  }
}
