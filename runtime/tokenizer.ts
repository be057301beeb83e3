/**
 * Text to token ids and back, over @huggingface/tokenizers: the tokenizer.json of a model's folder or bundle. This
 * file adds what that library leaves out: checks of the untrusted file, of the ids against the model's vocabulary,
 * a limit in time, and errors that name the file.
 */
import { join } from "node:path";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { z } from "zod";
import { type ErrorKind, HcinferError } from "../compiler/errors.ts";
import { isLinearDecoder } from "./linear_decoder.ts";
import type { TextFiles } from "./text_files.ts";
import { secondsFor, type TimeLimit, withinTime } from "./time_limit.ts";

/** Ids beyond this are a lie or a mistake; the library would loop up to the largest. */
const MOST_IDS = 1 << 24;

/** Models pad their vocabulary to round sizes (3 % at most in those published); more means another tokenizer. */
const MOST_UNUSED_SHARE = 0.1;

/** Published files nest their rules 5 deep; code that walks them recurses. */
const MOST_DEPTH = 32;

/** Texts of more characters run out of memory in the library, and no model's context holds a hundredth of their tokens. */
const MOST_CHARACTERS = 1 << 28;

/** 256 MB of ids; rules can make many of few characters. */
const MOST_TOKENS = 1 << 26;

/** Reading a file of 3.4 MB, with 49,152 tokens, takes 0.1 to 0.2 s on one slow core. */
const SECONDS_PER_BYTE = 1e-6;

const id = z.int().nonnegative().max(MOST_IDS);
/** Token -> id; Unigram models have a list in order of id. */
type Vocabulary = Readonly<Record<string, number>> | readonly unknown[];

function isVocabulary(value: unknown): value is Vocabulary {
  if (typeof value !== "object" || value === null) return false;
  if (Array.isArray(value)) return value.length <= MOST_IDS;
  return Object.values(value).every((id) => Number.isInteger(id) && id >= 0 && id <= MOST_IDS);
}

const Rules = z.unknown().refine(
  (value) => isShallow(value, MOST_DEPTH),
  `nests more than ${MOST_DEPTH} deep`,
)
  .default(null);

const TokenizerFile = z.looseObject({
  model: z.looseObject({
    // Files older than the field are told apart by their other fields.
    type: z.enum(["BPE", "Unigram", "WordPiece"]).nullish(),
    // By hand: a schema would take longer than all the rest for a hundred thousand entries.
    vocab: z.custom<Vocabulary>(isVocabulary, `must map tokens to ids from 0 to ${MOST_IDS}`),
  }),
  added_tokens: z.array(z.looseObject({ id, content: z.string() })).max(MOST_IDS).default([]),
  normalizer: Rules,
  pre_tokenizer: Rules,
  post_processor: Rules,
  decoder: Rules,
});

/** A special token is written as its text or as an object with the text. */
const SpecialToken = z.union([z.string(), z.looseObject({ content: z.string() }).transform((t) => t.content)])
  .nullish();
const ConfigFile = z.looseObject({
  bos_token: SpecialToken,
  eos_token: SpecialToken,
  additional_special_tokens: z.array(z.union([z.string(), z.looseObject({ content: z.string() })])).nullish(),
  chat_template: z.union([
    z.string(),
    z.array(z.looseObject({ name: z.string(), template: z.string() })),
  ]).nullish(),
});
/** What is used of tokenizer_config.json. */
export type TokenizerConfig = z.infer<typeof ConfigFile>;

/** A model's tokenizer. */
export class Tokenizer {
  readonly #library: Library;
  readonly #file: string;
  readonly #linearDecoder: boolean;
  /** Largest id + 1. */
  readonly size: number;
  readonly config: TokenizerConfig;

  private constructor(
    library: Library,
    file: string,
    linearDecoder: boolean,
    size: number,
    config: TokenizerConfig,
  ) {
    this.#library = library;
    this.#file = file;
    this.#linearDecoder = linearDecoder;
    this.size = size;
    this.config = config;
  }

  /**
   * Reads `tokenizer.json` and, where there is one, `tokenizer_config.json` of `files`.
   * @param vocabularySize the model's, which every id must be below
   * @throws {HcinferError} "checkpoint": a file is missing or unsound, takes too long, or belongs to another model
   */
  static open(files: TextFiles, vocabularySize: number): Tokenizer {
    const file = join(files.path, "tokenizer.json");
    const bytes = files.file("tokenizer.json");
    if (bytes === undefined) {
      throw new HcinferError(
        "checkpoint",
        `${file} does not exist: without a tokenizer there are only token ids, no text. ` +
          "Copy the model's tokenizer.json there, or use token ids (logits --tokens)",
      );
    }
    const configBytes = files.file("tokenizer_config.json");
    const description = parse(TokenizerFile, bytes, file);
    const config = configBytes
      ? parse(ConfigFile, configBytes, join(files.path, "tokenizer_config.json"))
      : {};
    const size = idCount(description);
    if (size > vocabularySize || size < vocabularySize * (1 - MOST_UNUSED_SHARE)) {
      throw new HcinferError(
        "checkpoint",
        `${file} has ${size} token ids, the model's vocabulary has ${vocabularySize}: ` +
          "they are not of one model. Copy the tokenizer.json that came with the weights",
      );
    }
    const limit: TimeLimit = {
      seconds: Math.ceil(secondsFor(0) + bytes.length * SECONDS_PER_BYTE),
      kind: "checkpoint",
      doing: `opening ${file}`,
      advice: "one of its rules does not end. Copy the tokenizer.json that came with the weights",
    };
    const library = withinTime(limit, () => load(description, config, file));
    const linear = isLinearDecoder(description.decoder, description.added_tokens.length);
    return new Tokenizer(library, file, linear, size, config);
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
    const ids = this.#attempt(() => {
      const encode = () => this.#library.encode(text, { add_special_tokens: addSpecialTokens }).ids;
      return withinTime(this.#limit("input", text.length, "characters"), encode);
    });
    if (ids.length > MOST_TOKENS) {
      throw new HcinferError("input", `the text has ${ids.length} tokens, more than ${MOST_TOKENS}`);
    }
    // A model without a token for the unknown gives undefined for it.
    if (ids.some((id) => !Number.isInteger(id) || id < 0 || id >= this.size)) {
      throw new HcinferError("input", "the tokenizer has no token for some characters of the text");
    }
    return Int32Array.from(ids);
  }

  /**
   * Text of `ids`, exactly as written: no clean-up of spaces. Bytes that are no UTF-8 become U+FFFD; ids without a
   * token (padding of the vocabulary) have no text. Special tokens are left out unless asked for.
   * @throws {HcinferError} "checkpoint": the decoder takes too long
   */
  decode(ids: Iterable<number>, { skipSpecialTokens = true } = {}): string {
    const known = [...ids].filter((id) => this.#library.id_to_token(id) !== undefined);
    if (known.length === 0) return "";
    const decode = () =>
      this.#library.decode(known, {
        skip_special_tokens: skipSpecialTokens,
        clean_up_tokenization_spaces: false,
      });
    return this.#attempt(() => {
      if (this.#linearDecoder) return decode();
      return withinTime(this.#limit("checkpoint", known.length, "tokens"), decode);
    });
  }

  /** The id of a token by its exact text, `<|im_end|>`. */
  idOf(token: string): number | undefined {
    return this.#library.token_to_id(token);
  }

  /** Rules that do not fit the library fail with bare TypeErrors, some only on some texts: they get the file's name. */
  #attempt<T>(action: () => T): T {
    try {
      return action();
    } catch (cause) {
      throw unsupported(this.#file, cause);
    }
  }

  #limit(kind: ErrorKind, count: number, unit: string): TimeLimit {
    return {
      seconds: secondsFor(count),
      kind,
      doing: `converting ${count} ${unit} by the rules of ${this.#file}`,
      advice:
        "one of them is too slow for this. Break up long words and runs of spaces in the text, or copy the " +
        "tokenizer.json that came with the weights",
    };
  }
}

function load(content: z.infer<typeof TokenizerFile>, config: TokenizerConfig, file: string): Library {
  try {
    // The library takes absent fields for errors and null ones for defaults.
    const given = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== null));
    const library = new Library(content, given);
    // Faults of rules and merges show only when they are used.
    library.decode(library.encode("Aa 1, é\n").ids.filter(Number.isInteger).concat(0));
    return library;
  } catch (cause) {
    throw unsupported(file, cause);
  }
}

function unsupported(file: string, cause: unknown): HcinferError {
  if (cause instanceof HcinferError) return cause;
  return new HcinferError("checkpoint", `${file} is not supported: ${(cause as Error).message}`, { cause });
}

function idCount({ model, added_tokens }: z.infer<typeof TokenizerFile>): number {
  const { vocab } = model;
  const ids: Iterable<number> = isList(vocab) ? vocab.keys() : Object.values(vocab);
  let largest = -1;
  for (const id of ids) largest = Math.max(largest, id);
  for (const { id } of added_tokens) largest = Math.max(largest, id);
  return largest + 1;
}

/** Array.isArray does not narrow readonly arrays. */
function isList(vocab: Vocabulary): vocab is readonly unknown[] {
  return Array.isArray(vocab);
}

function isShallow(value: unknown, levels: number): boolean {
  if (typeof value !== "object" || value === null) return true;
  return levels > 0 && Object.values(value).every((part) => isShallow(part, levels - 1));
}

function parse<S extends z.ZodType>(schema: S, bytes: Uint8Array, file: string): z.infer<S> {
  let content: unknown;
  try {
    content = JSON.parse(new TextDecoder().decode(bytes));
  } catch (cause) {
    const message = `${file} cannot be read as JSON: ${(cause as Error).message}`;
    throw new HcinferError("checkpoint", message, { cause });
  }
  const parsed = schema.safeParse(content);
  if (parsed.success) return parsed.data;
  // A vocabulary can have a hundred thousand faults.
  const faults = parsed.error.issues.slice(0, 5)
    .map((issue) => `\n  - ${issue.path.join(".") || "the file"}: ${issue.message}`);
  throw new HcinferError("checkpoint", `${file} does not fit:${faults.join("")}`);
}
