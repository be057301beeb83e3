/** A request's answer as text, piece by piece: what routes of the API share. */
import { HcinferError } from "../compiler/errors.ts";
import type { Batch, BatchEnd } from "../runtime/batch.ts";
import type { Sampler } from "../runtime/sampler.ts";
import { StopTexts } from "../runtime/stop_texts.ts";
import { type TextDecoding, TextStream } from "../runtime/stream.ts";

export interface TextRequest {
  readonly prompt: Int32Array;
  readonly sampler: Sampler;
  readonly maxTokens: number;
  readonly stopTokens: readonly number[];
  readonly stopTexts: readonly string[];
  /** How many of the most probable tokens to name with each; undefined: no probabilities at all. */
  readonly logprobs: number | undefined;
  readonly signal: AbortSignal;
}

/** Natural logarithms of probabilities under the model, before sampling. */
export interface TokenLogprob {
  readonly token: string;
  readonly logprob: number;
}

export interface Choice extends TokenLogprob {
  readonly top: readonly TokenLogprob[];
}

export interface Usage {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
}

/** Text that is certain, and the tokens chosen since the last piece; the last one says how it ended. */
export interface Piece {
  readonly text: string;
  readonly choices: readonly Choice[];
  readonly end?: { readonly reason: BatchEnd; readonly usage: Usage };
}

/** Cancelling the stream ends the answer. It fails as `Batch.answer` does. */
export function answerText(
  batch: Batch,
  tokenizer: TextDecoding,
  request: TextRequest,
): ReadableStream<Piece> {
  const { prompt, logprobs, stopTexts } = request;
  const stream = new TextStream(tokenizer), stops = new StopTexts(stopTexts);
  const gone = new AbortController(), signal = AbortSignal.any([request.signal, gone.signal]);
  let choices: Choice[] = [];
  const flush = (text: string): Piece => {
    const piece = { text, choices };
    choices = [];
    return piece;
  };
  return new ReadableStream<Piece>({
    start(controller) {
      const onToken = (token: number, logits: Float32Array) => {
        const text = stops.push(stream.push(token));
        if (logprobs !== undefined) choices.push(choiceOf(tokenizer, logits, token, logprobs));
        if (text !== "" || choices.length > 0) controller.enqueue(flush(text));
        return !stops.reached;
      };
      batch.answer({ ...request, signal, onToken }).then(({ end: reason, ...rest }) => {
        const text = stops.push(stream.end()) + stops.end();
        const end = { reason, usage: { promptTokens: prompt.length, ...rest } };
        controller.enqueue({ ...flush(text), end });
        controller.close();
      }).catch((error) => {
        if (!gone.signal.aborted) controller.error(error);
      });
    },
    cancel() {
      gone.abort(new HcinferError("input", "the client has gone"));
    },
  });
}

function choiceOf(tokenizer: TextDecoding, logits: Float32Array, token: number, count: number): Choice {
  const largest = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - largest), 0);
  const named = (id: number): TokenLogprob => ({
    token: tokenizer.decode([id]),
    logprob: logits[id]! - largest - Math.log(sum),
  });
  const top: number[] = [];
  for (let id = 0; id < logits.length && count > 0; id++) {
    if (top.length === count && logits[id]! <= logits[top.at(-1)!]!) continue;
    const at = top.findIndex((other) => logits[other]! < logits[id]!);
    top.splice(at < 0 ? top.length : at, 0, id);
    top.length = Math.min(top.length, count);
  }
  return { ...named(token), top: top.map(named) };
}
