/** Answers in the API's shapes, whole or as chunks of a stream. */
import type { BatchEnd } from "../runtime/batch.ts";
import type { Choice, Piece, TokenLogprob, Usage } from "./text.ts";

/** The JSON of one kind of answer. */
export interface Shape {
  readonly whole: (pieces: readonly Piece[]) => unknown;
  /** Chunks before any piece. */
  readonly opening: (withUsage: boolean) => unknown[];
  readonly chunks: (piece: Piece, withUsage: boolean) => unknown[];
}

const FINISH: Readonly<Record<BatchEnd, string>> = { stop: "stop", length: "length", context: "length" };

export function completionAnswer(model: string, id: string): Shape {
  const object = { id, object: "text_completion", created: now(), model };
  let offset = 0;
  const choice = ({ text, choices, end }: Piece) => ({
    index: 0,
    text,
    logprobs: completionLogprobs(choices),
    finish_reason: end ? FINISH[end.reason] : null,
  });
  const completionLogprobs = (choices: readonly Choice[]) => {
    if (choices.length === 0) return null;
    const offsets = choices.map(({ token }) => (offset += token.length) - token.length);
    return {
      tokens: choices.map(({ token }) => token),
      token_logprobs: choices.map(({ logprob }) => logprob),
      top_logprobs: choices.map(({ top }) =>
        Object.fromEntries(top.map(({ token, logprob }) => [token, logprob]))
      ),
      text_offset: offsets,
    };
  };
  return {
    whole(pieces) {
      const all = joined(pieces);
      return { ...object, choices: [choice(all)], usage: usageOf(all.end?.usage) };
    },
    opening: () => [],
    chunks: (piece, withUsage) => chunksOf(object, choice(piece), piece, withUsage),
  };
}

export function chatAnswer(model: string, id: string): Shape {
  const [whole, chunk] = ["chat.completion", "chat.completion.chunk"].map((object) => (
    { id, object, created: now(), model }
  ));
  const rest = ({ choices, end }: Piece) => ({
    logprobs: choices.length === 0 ? null : { content: choices.map(chatLogprob) },
    finish_reason: end ? FINISH[end.reason] : null,
  });
  const delta = (content: object, piece: Piece) => ({ index: 0, delta: content, ...rest(piece) });
  return {
    whole(pieces) {
      const all = joined(pieces);
      const message = { role: "assistant", content: all.text, refusal: null };
      return { ...whole, choices: [{ index: 0, message, ...rest(all) }], usage: usageOf(all.end?.usage) };
    },
    opening: (withUsage) => {
      const nothing: Piece = { text: "", choices: [] };
      return chunksOf(chunk!, delta({ role: "assistant", content: "" }, nothing), nothing, withUsage);
    },
    chunks(piece, withUsage) {
      return chunksOf(
        chunk!,
        delta(piece.text === "" ? {} : { content: piece.text }, piece),
        piece,
        withUsage,
      );
    },
  };
}

function chunksOf(object: object, choice: object, { end }: Piece, withUsage: boolean): unknown[] {
  const chunk = { ...object, choices: [choice], ...(withUsage ? { usage: null } : {}) };
  return end && withUsage ? [chunk, { ...object, choices: [], usage: usageOf(end.usage) }] : [chunk];
}

function joined(pieces: readonly Piece[]): Piece {
  const end = pieces.at(-1)?.end;
  const text = pieces.map((piece) => piece.text).join("");
  return { text, choices: pieces.flatMap((piece) => piece.choices), ...(end ? { end } : {}) };
}

function chatLogprob({ top, ...own }: Choice) {
  const named = ({ token, logprob }: TokenLogprob) => ({
    token,
    logprob,
    bytes: [...new TextEncoder().encode(token)],
  });
  return { ...named(own), top_logprobs: top.map(named) };
}

function usageOf(usage: Usage | undefined) {
  const { promptTokens = 0, generatedTokens = 0, cachedTokens = 0 } = usage ?? {};
  return {
    prompt_tokens: promptTokens,
    completion_tokens: generatedTokens,
    total_tokens: promptTokens + generatedTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

function now(): number {
  return Math.floor(Date.now() / 1000);
}
