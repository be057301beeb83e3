/**
 * The thread that works on text. A tokenizer.json and a chat template are untrusted programs of a kind: nested loops,
 * an expression that backtracks for ever, a rule that is slow on one long word. So their work runs in a thread of its
 * own, and callers wait for it, with a limit: past it the thread is ended, and the next call begins another.
 *
 * A call costs about 0.1 ms, the thread 60 ms to begin, which it does with the first call or `warmTextThread`. It does
 * not keep the process alive. What its objects are made from is kept here, so that they outlive a thread.
 */
import { MessageChannel, receiveMessageOnPort, Worker } from "node:worker_threads";
import { type ErrorKind, HcinferError } from "../compiler/errors.ts";
import type { TextCalls, TextReply, TextRequest, TextSource } from "./text_calls.ts";

/** Memory after which the thread ends: three times what the largest published tokenizer takes (Gemma's, 256,000 tokens). */
const MOST_MEGABYTES = 1024;

/** For a loaded machine, and a thread that has yet to begin. */
const LEAST_SECONDS = 5;

/** Encoding takes 1 to 2 us a character on one slow core, rendering and decoding less. */
const SECONDS_PER_CHARACTER = 25e-6;

/** How long work on a text of this many characters (or tokens) may take. */
export function secondsFor(characters: number): number {
  return Math.ceil(LEAST_SECONDS + characters * SECONDS_PER_CHARACTER);
}

/** How long a call may take, and the error when it takes longer: `doing` took more than `seconds`: `advice`. */
export interface TimeLimit {
  readonly seconds: number;
  readonly kind: ErrorKind;
  readonly doing: string;
  readonly advice: string;
}

let worker: Worker | undefined;
let objects = 0;

/** Begins the thread, where there is none, without waiting for it: what follows soon need not wait either. */
export function warmTextThread(): void {
  current();
}

/** Ends the thread, which frees its memory; the next call begins another. */
export function endTextThread(): void {
  void worker?.terminate();
  worker = undefined;
}

function current(): Worker {
  if (worker) return worker;
  const resourceLimits = { maxOldGenerationSizeMb: MOST_MEGABYTES };
  worker = new Worker(new URL("./text_worker.ts", import.meta.url), { resourceLimits });
  worker.unref();
  return worker;
}

/** A tokenizer or a template that lives in the thread. */
export class TextObject {
  readonly #id = ++objects;
  readonly #source: TextSource;

  constructor(source: TextSource) {
    this.#source = source;
  }

  /**
   * @throws {HcinferError} of `limit.kind`: it took too long; "usage": an argument that is not plain data; or what the
   *   thread's work threw
   * @throws {Error} with the message of any other error of that work
   */
  call<C extends keyof TextCalls>(
    call: C,
    limit: TimeLimit,
    ...args: Parameters<TextCalls[C]>
  ): ReturnType<TextCalls[C]> {
    let reply = this.#ask(call, args, limit, undefined);
    if (reply.kind === "unopened") reply = this.#ask(call, args, limit, this.#source);
    if (reply.kind === "value") return reply.value as ReturnType<TextCalls[C]>;
    const { error, message } = reply.kind === "error" ? reply : { error: undefined, message: "no reply" };
    throw error === undefined ? new Error(message) : new HcinferError(error, message);
  }

  #ask(
    call: keyof TextCalls,
    args: readonly unknown[],
    limit: TimeLimit,
    source: TextSource | undefined,
  ): TextReply {
    const done = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));
    // A channel a call: no reply can be taken for another's, and nothing stays open between calls.
    const { port1, port2 } = new MessageChannel();
    const request: TextRequest = { id: this.#id, source, call, args, port: port2, done };
    try {
      send(current(), request);
      // A thread that ran out of memory is gone without a word.
      if (Atomics.wait(done, 0, 0, limit.seconds * 1000) === "timed-out") {
        endTextThread();
        throw new HcinferError(
          limit.kind,
          `${limit.doing} took more than ${limit.seconds} s or ${MOST_MEGABYTES} MB and was ended: ${limit.advice}`,
        );
      }
      return receiveMessageOnPort(port1)?.message as TextReply;
    } finally {
      port1.close();
    }
  }
}

function send(worker: Worker, request: TextRequest): void {
  try {
    worker.postMessage(request, [request.port]);
  } catch (cause) {
    const message = `text work takes plain data only: ${(cause as Error).message}`;
    throw new HcinferError("usage", message, { cause });
  }
}
