/**
 * Text to token ids and back, over @huggingface/tokenizers: the tokenizer.json of a model's folder or bundle. This
 * file adds what that library leaves out: checks of the untrusted file, of the ids against the model's vocabulary,
 * and errors that name the file.
 */
import { join } from "node:path";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { z } from "zod";
import { HcinferError } from "../compiler/errors.ts";
import type { TextFiles } from "./text_files.ts";

/** Ids beyond this are a lie or a mistake; the library would loop up to the largest. */
const MOST_IDS = 1 << 24;

/** Models pad their vocabulary to round sizes (3 % at most in those published); more means another tokenizer. */
const MOST_UNUSED_SHARE = 0.1;

const id = z.int().nonnegative().max(MOST_IDS);
/** Token -> id; Unigram models have a list in order of id. */
type Vocabulary = Readonly<Record<string, number>> | readonly unknown[];

function isVocabulary(value: unknown): value is Vocabulary {
  if (typeof value !== "object" || value === null) return false;
  if (Array.isArray(value)) return value.length <= MOST_IDS;
  return Object.values(value).every((id) => Number.isInteger(id) && id >= 0 && id <= MOST_IDS);
}

const TokenizerFile = z.looseObject({
  model: z.looseObject({
    // Files older than the field are told apart by their other fields.
    type: z.enum(["BPE", "Unigram", "WordPiece"]).nullish(),
    // By hand: a schema would take longer than all the rest for a hundred thousand entries.
    vocab: z.custom<Vocabulary>(isVocabulary, `must map tokens to ids from 0 to ${MOST_IDS}`),
  }),
  added_tokens: z.array(z.looseObject({ id, content: z.string() })).max(MOST_IDS).default([]),
  normalizer: z.unknown().default(null),
  pre_tokenizer: z.unknown().default(null),
  post_processor: z.unknown().default(null),
  decoder: z.unknown().default(null),
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
export type TokenizerConfig = z.infer<typeof ConfigFile>;

export class Tokenizer {
  readonly #library: Library;
  /** Largest id + 1. */
  readonly size: number;
  readonly config: TokenizerConfig;

  private constructor(library: Library, size: number, config: TokenizerConfig) {
    this.#library = library;
    this.size = size;
    this.config = config;
  }

  /**
   * Reads `tokenizer.json` and, where there is one, `tokenizer_config.json` of `files`.
   * @param vocabularySize the model's, which every id must be below
   * @throws {HcinferError} "checkpoint": a file is missing or unsound, or belongs to another model
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
    try {
      // The library takes absent fields for errors and null ones for defaults.
      const given = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== null));
      const library = new Library(description, given);
      // Faults of rules and merges show only when they are used.
      library.decode(library.encode("Aa 1, é\n").ids.filter(Number.isInteger).concat(0));
      return new Tokenizer(library, size, config);
    } catch (cause) {
      const message = `${file} is not supported: ${(cause as Error).message}`;
      throw new HcinferError("checkpoint", message, { cause });
    }
  }

  /**
   * Token ids of `text`. `addSpecialTokens` (default) puts around it what the tokenizer prescribes, such as a begin
   * token; a rendered chat template has its own.
   */
  encode(text: string, { addSpecialTokens = true } = {}): Int32Array {
    const ids = this.#library.encode(text, { add_special_tokens: addSpecialTokens }).ids;
    // A model without a token for the unknown gives undefined for it.
    const unknown = ids.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= this.size);
    if (unknown >= 0) {
      throw new HcinferError("input", "the tokenizer has no token for some characters of the text");
    }
    return Int32Array.from(ids);
  }

  /**
   * Text of `ids`, exactly as written: no clean-up of spaces. Bytes that are no UTF-8 become U+FFFD; ids without a
   * token (padding of the vocabulary) have no text. Special tokens are left out unless asked for.
   */
  decode(ids: Iterable<number>, { skipSpecialTokens = true } = {}): string {
    const known = [...ids].filter((id) => this.#library.id_to_token(id) !== undefined);
    if (known.length === 0) return "";
    return this.#library.decode(known, {
      skip_special_tokens: skipSpecialTokens,
      clean_up_tokenization_spaces: false,
    });
  }

  /** The id of a token by its exact text, `<|im_end|>`. */
  idOf(token: string): number | undefined {
    return this.#library.token_to_id(token);
  }
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
