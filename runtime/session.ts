/**
 * A sequence on an executor: a prompt goes in in chunks, then tokens come out one by one. One session at a time owns
 * an executor, whose cache holds this one sequence.
 */
import { performance } from "node:perf_hooks";
import { setImmediate } from "node:timers/promises";
import { HcinferError } from "../compiler/errors.ts";
import type { Executor, StepKind } from "./executor.ts";
import { Sampler } from "./sampler.ts";
import { type TextDecoding, TextStream } from "./stream.ts";

/** How long generation may hold the event loop: signals, timers and aborts wait at most this long, plus a step. */
const MOST_MILLISECONDS_BUSY = 10;

export interface SessionOptions {
  /** Tokens of a prompt per step; at most, and by default, the executor's capacity. */
  readonly chunk?: number;
}

export interface GenerateOptions {
  /** Default: greedy. */
  readonly sampler?: Sampler;
  /** Most tokens to generate; by default until the context is full. */
  readonly maxTokens?: number;
  /** Ids that end the text; by default the model's. An empty list never stops. */
  readonly stopTokens?: readonly number[];
  /** Without one, pieces have no text. */
  readonly tokenizer?: TextDecoding;
  readonly signal?: AbortSignal;
}

/** One generated token and the text it completes. The last piece may be text alone, without a token. */
export interface Piece {
  readonly token: number | undefined;
  readonly text: string;
}

/** Why generation ended: a stop token, `maxTokens`, a full context, or the signal (or nobody iterates on). */
export type EndReason = "stop" | "length" | "context" | "aborted";

export interface GenerationStatistics {
  readonly end: EndReason | undefined;
  readonly promptTokens: number;
  /** Tokens sampled, the stop token included. */
  readonly generatedTokens: number;
  readonly promptSeconds: number;
  /** Time in decode steps and sampling after the first token. */
  readonly decodeSeconds: number;
  /** From the call to the first token. */
  readonly secondsToFirstToken: number;
  readonly promptTokensPerSecond: number;
  /** Of the tokens after the first, which the prompt's step gives. */
  readonly decodeTokensPerSecond: number;
}

export class Session {
  readonly executor: Executor;
  readonly chunk: number;
  #position = 0;

  constructor(executor: Executor, options: SessionOptions = {}) {
    this.executor = executor;
    this.chunk = Math.min(options.chunk ?? executor.capacity, executor.capacity);
    if (!Number.isInteger(this.chunk) || this.chunk < 1) {
      throw new HcinferError("usage", `a prompt's chunk must be at least 1 token, found ${options.chunk}`);
    }
  }

  /** Tokens in the cache. */
  get position(): number {
    return this.#position;
  }

  /** Forgets the tokens from `position` on; by default all. */
  rewind(position = 0): void {
    if (!Number.isInteger(position) || position < 0 || position > this.#position) {
      throw new HcinferError("usage", `cannot go back to position ${position} of ${this.#position}`);
    }
    this.#position = position;
  }

  /**
   * Appends a prompt and returns the logits after its last token, valid until the next step.
   * @throws {HcinferError} "input": no tokens, or more than the context has room for (nothing is computed then)
   */
  prefill(tokens: Int32Array): Float32Array {
    this.#checkRoom(tokens.length);
    let logits = new Float32Array(0);
    for (let start = 0; start < tokens.length; start += this.chunk) {
      const end = Math.min(start + this.chunk, tokens.length);
      logits = this.#step(tokens.subarray(start, end), "prefill", end === tokens.length);
    }
    return logits;
  }

  /** Appends one token and returns the logits after it, valid until the next step. */
  decode(token: number): Float32Array {
    return this.#step(Int32Array.of(token), "decode", true);
  }

  /**
   * Appends `prompt` and generates. Iterate over what is returned; its `statistics` are complete when it ends. The
   * last generated token is not appended to the cache.
   * @throws {HcinferError} as `prefill`, when iteration begins
   */
  generate(prompt: Int32Array, options: GenerateOptions = {}): Generation {
    return new Generation(this, prompt, options);
  }

  #step(tokens: Int32Array, as: StepKind, wanted: boolean): Float32Array<ArrayBuffer> {
    const request = { tokens, position: this.#position, as, logits: wanted ? "last" : "none" } as const;
    const logits = this.executor.step(request);
    this.#position += tokens.length;
    return logits as Float32Array<ArrayBuffer>;
  }

  #checkRoom(count: number): void {
    const { contextLength } = this.executor;
    if (count === 0) throw new HcinferError("input", "the prompt has no tokens");
    if (this.#position + count <= contextLength) return;
    const before = this.#position === 0 ? "" : ` after ${this.#position} earlier ones`;
    throw new HcinferError(
      "input",
      `the prompt has ${count} tokens${before}, the context holds ${contextLength}: shorten the prompt`,
    );
  }
}

/** Tokens as they are generated. Can be iterated once. */
export class Generation implements AsyncIterable<Piece> {
  readonly #session: Session;
  readonly #prompt: Int32Array;
  readonly #options: GenerateOptions;
  #end: EndReason | undefined;
  #generated = 0;
  #promptSeconds = 0;
  #decodeSeconds = 0;
  #secondsToFirstToken = 0;

  constructor(session: Session, prompt: Int32Array, options: GenerateOptions) {
    this.#session = session;
    this.#prompt = prompt;
    this.#options = options;
  }

  get statistics(): GenerationStatistics {
    const rate = (count: number, seconds: number) => seconds > 0 ? count / seconds : 0;
    const decoded = Math.max(0, this.#generated - 1);
    return {
      end: this.#end,
      promptTokens: this.#prompt.length,
      generatedTokens: this.#generated,
      promptSeconds: this.#promptSeconds,
      decodeSeconds: this.#decodeSeconds,
      secondsToFirstToken: this.#secondsToFirstToken,
      promptTokensPerSecond: rate(this.#prompt.length, this.#promptSeconds),
      decodeTokensPerSecond: rate(decoded, this.#decodeSeconds),
    };
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void, undefined> {
    const session = this.#session;
    const { tokenizer, signal, maxTokens = Infinity } = this.#options;
    const sampler = this.#options.sampler ?? new Sampler();
    const stops = new Set(this.#options.stopTokens ?? session.executor.model.stopTokens);
    const stream = tokenizer && new TextStream(tokenizer);

    let began = performance.now();
    let lastPause = began;
    try {
      if (signal?.aborted) return;
      if (maxTokens < 1) return void (this.#end = "length");
      let logits = session.prefill(this.#prompt);
      this.#promptSeconds = secondsSince(began);
      while (true) {
        const token = sampler.next(logits);
        this.#generated++;
        if (this.#generated === 1) this.#secondsToFirstToken = secondsSince(began);
        else this.#decodeSeconds += secondsSince(began);
        if (stops.has(token)) {
          this.#end = "stop";
          break;
        }
        yield { token, text: stream?.push(token) ?? "" };
        if (performance.now() - lastPause > MOST_MILLISECONDS_BUSY) {
          await setImmediate();
          lastPause = performance.now();
        }
        if (signal?.aborted) break;
        if (this.#generated >= maxTokens) this.#end = "length";
        else if (session.position >= session.executor.contextLength) this.#end = "context";
        if (this.#end) break;
        began = performance.now();
        logits = session.decode(token);
      }
      const rest = stream?.end() ?? "";
      if (rest !== "") yield { token: undefined, text: rest };
    } finally {
      // Also when whoever iterates stops, or a step throws.
      this.#end ??= "aborted";
    }
  }
}

function secondsSince(milliseconds: number): number {
  return (performance.now() - milliseconds) / 1000;
}
