/**
 * Continuous batching: the texts of several requests on one executor. A decode step holds the next token of every answer, and
 * one pass over the weights serves them all; between two of them one chunk of prompts is computed, so that long prompts do
 * not hold up answers, nor answers prompts (chunked prefill: Sarathi-Serve, arXiv 2403.02310).
 *
 * Prompts that begin alike are computed once: a finished text is kept while there is room, and a request goes on from the one
 * that shares most with it (`Session.shared`: same tokens, computed as a prompt's). Logits do not depend on who shares a step.
 */
import { performance } from "node:perf_hooks";
import { setImmediate } from "node:timers/promises";
import { HcinferError } from "../compiler/errors.ts";
import { MOST_RUNS, PAGE_POSITIONS } from "../compiler/memory.ts";
import type { Executor, Run } from "./executor.ts";
import type { Sampler } from "./sampler.ts";
import { Session } from "./session.ts";

export interface BatchRequest {
  /** Token ids, at least one. */
  readonly prompt: Int32Array;
  readonly sampler: Sampler;
  /** Most tokens to generate. */
  readonly maxTokens: number;
  /** Ids that end the answer. */
  readonly stopTokens: readonly number[];
  /**
   * Each token of the answer but a stop token, and the logits [vocabulary] that it was chosen from, which the next step overwrites.
   * Returns whether the answer goes on.
   */
  readonly onToken: (token: number, logits: Float32Array) => boolean;
  readonly signal?: AbortSignal;
}

/** stop: a stop token, or `onToken` said so; context: it is full. */
export type BatchEnd = "stop" | "length" | "context";

export interface BatchAnswer {
  readonly end: BatchEnd;
  /** Of the prompt's tokens, those that an earlier text had computed. */
  readonly cachedTokens: number;
  /** The stop token included. */
  readonly generatedTokens: number;
}

export interface BatchOptions {
  /** Most texts that are worked on at a time. Default: 16. */
  readonly slots?: number;
  /** Most requests that wait for a slot. Default: 64. */
  readonly queue?: number;
  /** Tokens of prompts in a step. Default: 256. */
  readonly chunk?: number;
}

/** The queue is full, or closing: nothing is wrong with the request. */
export class Busy extends Error {
  override readonly name = "Busy";

  constructor(message: string, readonly isClosing = false) {
    super(message);
  }
}

export interface BatchState {
  readonly waiting: number;
  readonly prompts: number;
  readonly answers: number;
  readonly kept: number;
}

/** Finished texts that are kept for what begins like them. */
const MOST_KEPT = 32;

/** Fewer shared tokens than this are computed again. */
const LEAST_SHARED = 16;

/** How long steps may hold the event loop, plus one. */
const MOST_MILLISECONDS_BUSY = 10;

/** A step after one that took longer leaves the event loop free. */
const LONG_STEP_MILLISECONDS = 20;

export class Batch implements AsyncDisposable {
  readonly #executor: Executor & { readonly freePositions: number };
  readonly #limits: Required<BatchOptions>;
  #waiting: Text[] = [];
  #prompts: Text[] = [];
  #answers: Text[] = [];
  /** The least recently used first. */
  #kept: Session[] = [];
  #working: Promise<void> | undefined;
  #isClosed = false;
  #lastStep = 0;
  #lastPause = 0;

  constructor(executor: Executor & { readonly freePositions: number }, options: BatchOptions = {}) {
    this.#executor = executor;
    const { slots = 16, queue = 64, chunk = 256 } = options;
    this.#limits = {
      slots: Math.min(slots, MOST_RUNS, executor.capacity),
      queue,
      chunk: Math.min(chunk, executor.capacity),
    };
  }

  get state(): BatchState {
    return {
      waiting: this.#waiting.length,
      prompts: this.#prompts.length,
      answers: this.#answers.length,
      kept: this.#kept.length,
    };
  }

  /**
   * Answers a request. An aborted one is rejected with its signal's reason, and its place is free at once.
   * @throws {Busy} the queue is full
   * @throws {HcinferError} "input": no tokens, unknown ones, or more than the context holds; "bundle": what the model computed is no number
   */
  async answer(request: BatchRequest): Promise<BatchAnswer> {
    const { prompt, signal } = request, { contextLength } = this.#executor;
    if (this.#isClosed) throw new Busy("no more requests are taken", true);
    if (prompt.length === 0) throw new HcinferError("input", "the prompt has no tokens");
    if (prompt.length >= contextLength) {
      const message =
        `the prompt has ${prompt.length} tokens, the context holds ${contextLength} with the answer`;
      throw new HcinferError("input", message);
    }
    const { vocabularySize } = this.#executor.model;
    const bad = prompt.find((id) => id < 0 || id >= vocabularySize);
    if (bad !== undefined) {
      throw new HcinferError("input", `token ${bad} is outside the vocabulary of ${vocabularySize}`);
    }
    if (this.#waiting.length >= this.#limits.queue) {
      throw new Busy(`${this.#waiting.length} requests are waiting`);
    }
    signal?.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<BatchAnswer>();
    const text = new Text(request, contextLength, resolve, reject);
    const abort = () => reject(signal?.reason);
    signal?.addEventListener("abort", abort, { once: true });
    this.#waiting.push(text);
    this.#start();
    try {
      return await promise;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  /** Takes no more requests, and returns when those that were taken are answered. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    while (this.#working !== undefined) await this.#working;
    for (const session of this.#kept.splice(0)) session[Symbol.dispose]();
  }

  #start(): void {
    this.#working ??= this.#work().finally(() => {
      this.#working = undefined;
      // Came when the work had just ended.
      if (this.#waiting.length > 0) this.#start();
    });
  }

  async #work(): Promise<void> {
    // Requests that come together are seen together.
    await setImmediate();
    while (true) {
      this.#leave();
      this.#admit();
      if (this.#prompts.length + this.#answers.length === 0) return;
      if (this.#answers.length > 0) await this.#decode();
      if (this.#prompts.length > 0) await this.#read();
    }
  }

  /** Texts whose clients have gone. */
  #leave(): void {
    const isGone = ({ request: { signal } }: Text) => signal?.aborted === true;
    for (const text of [...this.#prompts, ...this.#answers].filter(isGone)) this.#keep(text);
    const stays = (text: Text) => !isGone(text);
    this.#waiting = this.#waiting.filter(stays);
    this.#prompts = this.#prompts.filter(stays);
    this.#answers = this.#answers.filter(stays);
  }

  #admit(): void {
    while (this.#waiting.length > 0 && this.#prompts.length + this.#answers.length < this.#limits.slots) {
      const text = this.#waiting[0]!;
      if (!this.#makeRoom(text)) return;
      this.#waiting.shift();
      text.session = this.#beginning(text);
      text.cachedTokens = text.session.reuse(text.request.prompt);
      this.#prompts.push(text);
    }
  }

  /** Whether the text will have room to its end beside all others to theirs; kept texts make way for it. */
  #makeRoom(text: Text): boolean {
    const missing = [...this.#prompts, ...this.#answers].reduce((sum, other) => sum + other.missing, 0);
    while (this.#executor.freePositions < missing + text.missing) {
      const oldest = this.#kept.shift();
      if (oldest === undefined) return missing === 0;
      oldest[Symbol.dispose]();
    }
    return true;
  }

  /** A session that begins with what is cached of the prompt. */
  #beginning({ request: { prompt } }: Text): Session {
    const others = [...this.#prompts, ...this.#answers].map(({ session }) => session!);
    let [best, most]: [Session | undefined, number] = [undefined, LEAST_SHARED - 1];
    for (const session of [...this.#kept, ...others]) {
      const shared = session.shared(prompt);
      if (shared > most) [best, most] = [session, shared];
    }
    if (best === undefined) return new Session(this.#executor);
    const at = this.#kept.indexOf(best);
    if (at >= 0) this.#kept.push(...this.#kept.splice(at, 1));
    return best.fork();
  }

  /** The next token of every answer. */
  async #decode(): Promise<void> {
    const texts = this.#answers;
    const runs = texts.map((text) => text.session!.run(Int32Array.of(text.token), "decode", true));
    const logits = await this.#step(texts, runs);
    logits.forEach((row, i) => this.#choose(texts[i]!, row));
  }

  /**
   * A chunk of prompts: those with the least left first, where nobody has been passed over too often. Only the first may
   * be cut: a step that ends short prompts is not made long by a part of another.
   */
  async #read(): Promise<void> {
    const { chunk } = this.#limits;
    const order = this.#prompts.toSorted((a, b) =>
      a.left - chunk * a.passedOver - (b.left - chunk * b.passedOver)
    );
    const texts: Text[] = [], runs: Run[] = [];
    let room = Math.min(chunk, this.#executor.capacity);
    for (const text of order) {
      if (texts.length > 0 && text.left > room) {
        text.passedOver++;
        continue;
      }
      const { position } = text.session!, { prompt } = text.request;
      const end = Math.min(prompt.length, position + room);
      texts.push(text);
      runs.push(text.session!.run(prompt.subarray(position, end), "prefill", end === prompt.length));
      room -= end - position;
    }
    const logits = await this.#step(texts, runs);
    logits.forEach((row, i) => {
      const text = texts[i]!;
      if (text.left > 0) return;
      this.#prompts.splice(this.#prompts.indexOf(text), 1);
      this.#answers.push(text);
      text.request.sampler.begin(text.request.prompt);
      this.#choose(text, row);
    });
  }

  /** The logits of a step; none where it failed, which ends its texts. */
  async #step(texts: readonly Text[], runs: readonly Run[]): Promise<readonly Float32Array[]> {
    const now = performance.now();
    const isBusy = now - this.#lastPause > MOST_MILLISECONDS_BUSY;
    if (isBusy) await setImmediate();
    const began = performance.now();
    if (isBusy) this.#lastPause = began;
    try {
      const isLong = this.#lastStep > LONG_STEP_MILLISECONDS || runs[0]!.as === "prefill";
      const logits = isLong ? await this.#executor.stepAsync({ runs }) : this.#executor.step({ runs });
      if (runs[0]!.as === "decode") this.#lastStep = performance.now() - began;
      runs.forEach((run, i) => texts[i]!.session!.append(run));
      return logits;
    } catch (error) {
      for (const text of texts) {
        text.reject(error);
        this.#end(text);
        text.session![Symbol.dispose]();
      }
      return [];
    }
  }

  #choose(text: Text, logits: Float32Array): void {
    const { request, session } = text;
    if (request.signal?.aborted) return;
    try {
      const token = text.token = request.sampler.next(logits);
      text.generated++;
      const isStop = request.stopTokens.includes(token);
      if (isStop || !request.onToken(token, logits)) return this.#finish(text, "stop");
      if (text.generated >= request.maxTokens) return this.#finish(text, "length");
      if (session!.position >= this.#executor.contextLength) this.#finish(text, "context");
    } catch (error) {
      text.reject(error);
      this.#end(text);
      this.#keep(text);
    }
  }

  #finish(text: Text, end: BatchEnd): void {
    this.#end(text);
    this.#keep(text);
    text.resolve({ end, cachedTokens: text.cachedTokens, generatedTokens: text.generated });
  }

  #end(text: Text): void {
    this.#prompts = this.#prompts.filter((other) => other !== text);
    this.#answers = this.#answers.filter((other) => other !== text);
  }

  /** Keeps what was computed as a prompt, for texts that begin alike. */
  #keep(text: Text): void {
    const session = text.session!;
    session.rewind(Math.min(session.position, text.request.prompt.length));
    if (session.position < LEAST_SHARED) return session[Symbol.dispose]();
    this.#kept.push(session);
    if (this.#kept.length > MOST_KEPT) this.#kept.shift()![Symbol.dispose]();
  }
}

/** A request and how far it is. */
class Text {
  /** From when it has a slot. */
  session: Session | undefined;
  cachedTokens = 0;
  /** The newest token of the answer, which is not cached. */
  token = 0;
  generated = 0;
  /** Chunks that others had while it waited. */
  passedOver = 0;

  constructor(
    readonly request: BatchRequest,
    readonly contextLength: number,
    readonly resolve: (answer: BatchAnswer) => void,
    readonly reject: (reason: unknown) => void,
  ) {}

  /** Tokens of the prompt that are not computed. */
  get left(): number {
    return this.request.prompt.length - (this.session?.position ?? 0);
  }

  /** Positions that it may still take, in whole pages and one more for a page that it shares. */
  get missing(): number {
    const { prompt, maxTokens } = this.request;
    const most = Math.min(this.contextLength, prompt.length + maxTokens);
    const missing = Math.max(0, most - (this.session?.position ?? 0));
    return (Math.ceil(missing / PAGE_POSITIONS) + 1) * PAGE_POSITIONS;
  }
}
