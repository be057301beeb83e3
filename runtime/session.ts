/**
 * One text on an executor: a prompt goes in in chunks, then tokens come out one by one. Sessions on one executor do not
 * see each other; each holds a sequence until it is disposed of.
 */
import { performance } from "node:perf_hooks";
import { setImmediate } from "node:timers/promises";
import { HcinferError } from "../compiler/errors.ts";
import type { Executor, Run, Sequence, StepKind } from "./executor.ts";
import { Sampler } from "./sampler.ts";
import { StopTexts } from "./stop_texts.ts";
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
  /** Texts that end the answer and are no part of it; they need a tokenizer. */
  readonly stopTexts?: readonly string[];
  /** Without one, pieces have no text. */
  readonly tokenizer?: TextDecoding;
  readonly signal?: AbortSignal;
  /** Of the prompt, after each of its chunks, in tokens. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** One generated token and the text it completes. The last piece may be text alone, without a token. */
export interface Piece {
  readonly token: number | undefined;
  readonly text: string;
}

/** Why generation ended: a stop token, a stop text, `maxTokens`, a full context, or the signal (or nobody iterates on). */
export type EndReason = "stop" | "text" | "length" | "context" | "aborted";

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

/** A step that took longer than this is followed by one that leaves the event loop free. */
const LONG_STEP_MILLISECONDS = 20;

export interface PrefillOptions {
  /** Ends the prompt within milliseconds; the tokens of whole chunks before stay. */
  readonly signal?: AbortSignal;
  /** After each chunk, in tokens of this prompt. */
  readonly onProgress?: (done: number, total: number) => void;
}

export class Session implements Disposable {
  readonly executor: Executor;
  readonly chunk: number;
  readonly #sequence: Sequence;
  /** What is cached: tokens, and how each was run. A prefix is reused only where both agree. */
  readonly #tokens: number[];
  readonly #kinds: StepKind[];
  #lastStep = 0;

  constructor(executor: Executor, options: SessionOptions = {}, from?: Session) {
    this.executor = executor;
    this.chunk = Math.min(options.chunk ?? executor.capacity, executor.capacity);
    if (!Number.isInteger(this.chunk) || this.chunk < 1) {
      throw new HcinferError("usage", `a prompt's chunk must be at least 1 token, found ${options.chunk}`);
    }
    this.#sequence = from ? from.#sequence.fork() : executor.sequence();
    this.#tokens = from ? from.#tokens.slice() : [];
    this.#kinds = from ? from.#kinds.slice() : [];
  }

  /** Tokens in the cache. */
  get position(): number {
    return this.#tokens.length;
  }

  /** The cached tokens, in order. */
  get tokens(): readonly number[] {
    return this.#tokens;
  }

  /** A second session that begins with the same tokens; what both hold is stored once. */
  fork(): Session {
    return new Session(this.executor, { chunk: this.chunk }, this);
  }

  /** Forgets the tokens from `position` on; by default all. */
  rewind(position = 0): void {
    if (!Number.isInteger(position) || position < 0 || position > this.position) {
      throw new HcinferError("usage", `cannot go back to position ${position} of ${this.position}`);
    }
    this.#tokens.length = position;
    this.#kinds.length = position;
  }

  /**
   * Goes back to where the cached text begins to differ from `prompt`, run as a prompt, and returns how many of its tokens
   * are cached already. At least the last is left to run, which gives its logits.
   *
   * With `decoded`, tokens that were decoded count, too, as a conversation's own answers: what follows is then computed
   * from keys and values that differ a little from a prompt's (`StepKind`).
   */
  reuse(prompt: Int32Array, options: { readonly decoded?: boolean } = {}): number {
    const same = this.shared(prompt, options);
    this.rewind(same);
    return same;
  }

  /** How many tokens of `prompt` are cached here, as `reuse` counts them. */
  shared(prompt: Int32Array, { decoded = false }: { readonly decoded?: boolean } = {}): number {
    const fits = (at: number) =>
      this.#tokens[at] === prompt[at] && (decoded || this.#kinds[at] === "prefill");
    let same = 0;
    const most = Math.min(this.position, prompt.length - 1);
    while (same < most && fits(same)) same++;
    return same;
  }

  /**
   * Appends a prompt, chunk by chunk, and returns the logits after its last token, valid until the executor's next step.
   * The event loop goes on meanwhile.
   * @throws {HcinferError} "input": no tokens, or more than the context has room for (nothing is computed then)
   */
  async prefill(tokens: Int32Array, { signal, onProgress }: PrefillOptions = {}): Promise<Float32Array> {
    this.#checkRoom(tokens.length);
    let logits = new Float32Array(0);
    for (let start = 0; start < tokens.length; start += this.chunk) {
      const end = Math.min(start + this.chunk, tokens.length);
      const run = this.run(tokens.subarray(start, end), "prefill", end === tokens.length);
      [logits] = await this.executor.stepAsync({ runs: [run] }, signal) as [Float32Array<ArrayBuffer>];
      this.append(run);
      onProgress?.(end, tokens.length);
    }
    return logits;
  }

  /** Appends one token and returns the logits after it, valid until the executor's next step. */
  decode(token: number): Float32Array {
    const run = this.run(Int32Array.of(token), "decode", true);
    const began = performance.now();
    const [logits] = this.executor.step({ runs: [run] });
    this.#lastStep = performance.now() - began;
    this.append(run);
    return logits!;
  }

  /** `decode` that leaves the event loop free where steps are long. */
  async decodeAsync(token: number, signal?: AbortSignal): Promise<Float32Array> {
    if (this.#lastStep < LONG_STEP_MILLISECONDS) return this.decode(token);
    const run = this.run(Int32Array.of(token), "decode", true);
    const [logits] = await this.executor.stepAsync({ runs: [run] }, signal);
    this.append(run);
    return logits!;
  }

  /**
   * Appends `prompt` and generates. Iterate over what is returned; its `statistics` are complete when it ends. The
   * last generated token is not appended to the cache.
   * @throws {HcinferError} as `prefill`, when iteration begins
   */
  generate(prompt: Int32Array, options: GenerateOptions = {}): Generation {
    return new Generation(this, prompt, options);
  }

  /** Gives the sequence's memory back. */
  [Symbol.dispose](): void {
    this.#sequence[Symbol.dispose]();
    this.rewind();
  }

  /** The next tokens as a run, for a step that others share; `append` it when the step is over. */
  run(tokens: Int32Array, as: StepKind, wantsLogits: boolean): Run {
    const logits = wantsLogits ? "last" : "none";
    return { sequence: this.#sequence, position: this.position, tokens, as, logits };
  }

  /** Remembers what a step has appended. */
  append({ tokens, as }: Pick<Run, "tokens" | "as">): void {
    for (const token of tokens) {
      this.#tokens.push(token);
      this.#kinds.push(as);
    }
  }

  #checkRoom(count: number): void {
    const { contextLength } = this.executor;
    if (count === 0) throw new HcinferError("input", "the prompt has no tokens");
    if (this.position + count <= contextLength) return;
    const before = this.position === 0 ? "" : ` after ${this.position} earlier ones`;
    throw new HcinferError(
      "input",
      `the prompt has ${count} tokens${before}, the context holds ${contextLength}: shorten the prompt, ` +
        "or ask for a longer context",
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
    const { tokenizer, signal, maxTokens = Infinity, stopTexts = [] } = this.#options;
    const sampler = this.#options.sampler ?? new Sampler();
    const stops = new Set(this.#options.stopTokens ?? session.executor.model.stopTokens);
    const stream = tokenizer && new TextStream(tokenizer);
    const texts = new StopTexts(stopTexts);
    if (stopTexts.length > 0 && !tokenizer) {
      throw new HcinferError("usage", "stop texts need a tokenizer: without one, tokens have no text");
    }

    let began = performance.now();
    let lastPause = began;
    try {
      if (signal?.aborted) return;
      if (maxTokens < 1) return void (this.#end = "length");
      const { onProgress } = this.#options;
      const options = { ...signal ? { signal } : {}, ...onProgress ? { onProgress } : {} };
      let logits = await session.prefill(this.#prompt, options);
      this.#promptSeconds = secondsSince(began);
      sampler.begin(session.tokens);
      while (true) {
        const token = sampler.next(logits);
        this.#generated++;
        if (this.#generated === 1) this.#secondsToFirstToken = secondsSince(began);
        else this.#decodeSeconds += secondsSince(began);
        if (stops.has(token)) {
          this.#end = "stop";
          break;
        }
        yield { token, text: texts.push(stream?.push(token) ?? "") };
        if (performance.now() - lastPause > MOST_MILLISECONDS_BUSY) {
          await setImmediate();
          lastPause = performance.now();
        }
        if (signal?.aborted) break;
        if (texts.reached) this.#end = "text";
        else if (this.#generated >= maxTokens) this.#end = "length";
        else if (session.position >= session.executor.contextLength) this.#end = "context";
        if (this.#end) break;
        began = performance.now();
        logits = await session.decodeAsync(token, signal);
      }
      const rest = texts.push(stream?.end() ?? "") + texts.end();
      if (rest !== "") yield { token: undefined, text: rest };
    } catch (error) {
      if (!signal?.aborted || error !== signal.reason) throw error;
    } finally {
      // Also when whoever iterates stops, or a step throws.
      this.#end ??= "aborted";
    }
  }
}

function secondsSince(milliseconds: number): number {
  return (performance.now() - milliseconds) / 1000;
}
