/**
 * Text to token ids and back: the tokenizer.json of a model's folder or bundle. All that depends on the file's rules
 * runs in the text thread, with a limit in time; decoding runs here where it cannot take long.
 */
import { join } from "node:path";
import { type ErrorKind, HcinferError } from "../compiler/errors.ts";
import { type Decode, decoderOf } from "./decoding.ts";
import type { TokenizerConfig, TokenizerDescription } from "./text_calls.ts";
import type { TextFiles } from "./text_files.ts";
import { secondsFor, TextObject, type TimeLimit } from "./text_thread.ts";

/** Models pad their vocabulary to round sizes (3 % at most in those published); more means another tokenizer. */
const MOST_UNUSED_SHARE = 0.1;

/** Reading a file of 3.4 MB, 49,152 tokens, takes 0.1 s on one slow core. */
const SECONDS_PER_BYTE = 1e-6;

/** Some hundred times the longest context that models have; what is longer would only run out of memory. */
const MOST_CHARACTERS = 1 << 28;

export class Tokenizer {
  readonly #object: TextObject;
  readonly #file: string;
  readonly #decode: Decode;
  /** Largest id + 1. */
  readonly size: number;
  readonly config: TokenizerConfig;

  private constructor(object: TextObject, file: string, description: TokenizerDescription) {
    this.#object = object;
    this.#file = file;
    this.#decode = description.decoding
      ? decoderOf(description.decoding)
      : (ids, skip) => object.call("decode", this.#limit("checkpoint", ids.length, "tokens"), ids, skip);
    this.size = description.size;
    this.config = description.config;
  }

  /**
   * Reads `tokenizer.json` and, where there is one, `tokenizer_config.json` of `files`.
   * @param vocabularySize the model's, which every id must be below
   * @throws {HcinferError} "checkpoint": a file is missing or unsound, takes too long, or belongs to another model
   */
  static open(files: TextFiles, vocabularySize: number): Tokenizer {
    const file = join(files.path, "tokenizer.json");
    const json = files.file("tokenizer.json");
    if (json === undefined) {
      throw new HcinferError(
        "checkpoint",
        `${file} does not exist: without a tokenizer there are only token ids, no text. ` +
          "Copy the model's tokenizer.json there, or use token ids (logits --tokens)",
      );
    }
    const config = files.file("tokenizer_config.json");
    const object = new TextObject({
      kind: "tokenizer",
      path: files.path,
      json: shared(json),
      config: config && shared(config),
    });
    const description = object.call("describe", {
      seconds: Math.ceil(secondsFor(0) + json.length * SECONDS_PER_BYTE),
      kind: "checkpoint",
      doing: `opening ${file}`,
      advice: "its rules are of no use. Copy the tokenizer.json that came with the weights",
    });
    const { size } = description;
    if (size > vocabularySize || size < vocabularySize * (1 - MOST_UNUSED_SHARE)) {
      throw new HcinferError(
        "checkpoint",
        `${file} has ${size} token ids, the model's vocabulary has ${vocabularySize}: ` +
          "they are not of one model. Copy the tokenizer.json that came with the weights",
      );
    }
    return new Tokenizer(object, file, description);
  }

  /**
   * Token ids of `text`. `addSpecialTokens` (default) puts around it what the tokenizer prescribes, such as a begin
   * token; a rendered chat template has its own.
   * @throws {HcinferError} "input": characters without a token, a text that is too long or takes too long
   */
  encode(text: string, { addSpecialTokens = true } = {}): Int32Array<ArrayBuffer> {
    if (text.length > MOST_CHARACTERS) {
      throw new HcinferError("input", `the text has ${text.length} characters, more than ${MOST_CHARACTERS}`);
    }
    const limit = this.#limit("input", text.length, "characters");
    return new Int32Array(this.#object.call("encode", limit, text, addSpecialTokens));
  }

  /**
   * Text of `ids`, exactly as written: no clean-up of spaces. Bytes that are no UTF-8 become U+FFFD; ids without a
   * token (padding of the vocabulary) have no text. Special tokens are left out unless asked for.
   */
  decode(ids: Iterable<number>, { skipSpecialTokens = true } = {}): string {
    return this.#decode([...ids], skipSpecialTokens);
  }

  /** The id of a token by its exact text, `<|im_end|>`. */
  idOf(token: string): number | undefined {
    return this.#object.call("idOf", this.#limit("checkpoint", 1, "token"), token);
  }

  #limit(kind: ErrorKind, count: number, unit: string): TimeLimit {
    return {
      seconds: secondsFor(count),
      kind,
      doing: `converting ${count} ${unit} by the rules of ${this.#file}`,
      advice:
        "some rule is too slow for them. Break up long words and runs of spaces in the text, or copy the " +
        "tokenizer.json that came with the weights",
    };
  }
}

function shared(bytes: Uint8Array): SharedArrayBuffer {
  const buffer = new SharedArrayBuffer(bytes.length);
  new Uint8Array(buffer).set(bytes);
  return buffer;
}
