/** The text thread's own side (text_thread.ts): opens what it is sent, answers calls one after the other. */
import { parentPort } from "node:worker_threads";
import { HcinferError } from "../compiler/errors.ts";
import { openTemplate } from "./chat_work.ts";
import type { TextCalls, TextReply, TextRequest } from "./text_calls.ts";
import { openTokenizer } from "./tokenizer_work.ts";

/** A program rarely has more than a model's tokenizer and template; older ones are opened again when they are asked. */
const MOST_OPEN = 8;

/** In the order of their last use. */
const open = new Map<number, Partial<TextCalls>>();

function objectOf({ id, source }: TextRequest): Partial<TextCalls> | undefined {
  const object = open.get(id) ??
    (source?.kind === "tokenizer" ? openTokenizer(source) : source && openTemplate(source.text));
  if (object === undefined) return undefined;
  open.delete(id);
  open.set(id, object);
  for (const oldest of open.keys()) if (open.size > MOST_OPEN) open.delete(oldest);
  return object;
}

function answer(request: TextRequest): TextReply {
  try {
    const object = objectOf(request);
    if (object === undefined) return { kind: "unopened" };
    const method: ((...args: never[]) => unknown) | undefined = object[request.call];
    if (method === undefined) throw new Error(`${request.call} is no call of this object`);
    return { kind: "value", value: method(...request.args as never[]) };
  } catch (error) {
    const kind = error instanceof HcinferError ? error.kind : undefined;
    return { kind: "error", error: kind, message: error instanceof Error ? error.message : String(error) };
  }
}

parentPort?.on("message", (request: TextRequest) => {
  const reply = answer(request);
  request.port.postMessage(reply);
  Atomics.store(request.done, 0, 1);
  Atomics.notify(request.done, 0);
});
