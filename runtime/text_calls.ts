/**
 * What the text thread (text_thread.ts) can be asked: the calls, and what crosses between the threads as structured
 * clones: bytes and ids as bare buffers, because Deno looks at each element of an array (0.1 us) for ports to transfer.
 * Types only.
 */
import type { MessagePort } from "node:worker_threads";
import type { ErrorKind } from "../compiler/errors.ts";

/** Data without functions or classes: what a chat template can be given. */
export type Plain = string | number | boolean | null | undefined | readonly Plain[] | PlainRecord;
export interface PlainRecord {
  readonly [name: string]: Plain;
}

/** What a thread makes the object from that the calls are about. Untrusted, and read nowhere else. */
export type TextSource =
  | {
    readonly kind: "tokenizer";
    /** Of the files' folder, for messages. */
    readonly path: string;
    /** tokenizer.json and, where there is one, tokenizer_config.json: bytes. */
    readonly json: SharedArrayBuffer;
    readonly config: SharedArrayBuffer | undefined;
  }
  | { readonly kind: "template"; readonly text: string };

export interface TokenizerConfig {
  readonly bos_token?: string | null | undefined;
  readonly eos_token?: string | null | undefined;
  /** One template, or several of which one is named "default". */
  readonly chat_template?:
    | string
    | readonly { readonly name: string; readonly template: string }[]
    | null
    | undefined;
}

/** What turns ids into text without the rules of encoding: see decoding.ts. */
export interface DecodingTable {
  /** By id; undefined where an id has no token. */
  readonly tokens: (string | undefined)[];
  /** Fields of tokenizer.json, and of its model. */
  readonly decoder: unknown;
  readonly addedTokens: readonly unknown[];
  readonly endOfWordSuffix: unknown;
  /** Of tokenizer_config.json. */
  readonly additionalSpecialTokens: readonly unknown[];
}

export interface TokenizerDescription {
  /** Largest id + 1. */
  readonly size: number;
  readonly config: TokenizerConfig;
  /** Undefined where decoding is not known to take linear time. */
  readonly decoding: DecodingTable | undefined;
}

/** The calls by name; a tokenizer has the first four, a template the others. */
export interface TextCalls {
  describe(): TokenizerDescription;
  /** The ids, int32. */
  encode(text: string, addSpecialTokens: boolean): ArrayBuffer;
  decode(ids: readonly number[], skipSpecialTokens: boolean): string;
  idOf(token: string): number | undefined;
  /** Fails where the template does not parse. */
  check(): void;
  render(variables: PlainRecord): string;
}

export interface TextRequest {
  /** The object: opened before under this number, or now from `source`. */
  readonly id: number;
  readonly source: TextSource | undefined;
  readonly call: keyof TextCalls;
  readonly args: readonly unknown[];
  /** Where the reply goes; then the first of `done` becomes 1. */
  readonly port: MessagePort;
  readonly done: Int32Array<SharedArrayBuffer>;
}

export type TextReply =
  | { readonly kind: "value"; readonly value: unknown }
  | { readonly kind: "error"; readonly error: ErrorKind | undefined; readonly message: string }
  /** Not opened yet, or forgotten: ask again with the source. */
  | { readonly kind: "unopened" };
