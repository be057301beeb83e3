/**
 * Reading and using a tokenizer.json, in the text thread: over @huggingface/tokenizers, with what that library leaves
 * out: checks of the untrusted file, of the ids, and errors that name the file.
 */
import { join } from "node:path";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { z } from "zod";
import { HcinferError } from "../compiler/errors.ts";
import { isLinear } from "./decoding.ts";
import type { TextCalls, TextSource, TokenizerConfig, TokenizerDescription } from "./text_calls.ts";

/** Ids beyond this are a lie or a mistake; the library would loop up to the largest. */
const MOST_IDS = 1 << 24;

/** Published files nest their rules 5 deep; code that walks them recurses. */
const MOST_DEPTH = 32;

/** 256 MB of ids: far beyond every context. */
const MOST_TOKENS = 1 << 26;

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

/** @throws {HcinferError} "checkpoint": a file that is unsound or of a kind that is not supported */
export function openTokenizer(
  { path, json, config: configJson }: Extract<TextSource, { kind: "tokenizer" }>,
): Omit<TextCalls, "check" | "render"> {
  const file = join(path, "tokenizer.json");
  const content = parse(TokenizerFile, json, file);
  const config = configJson ? parse(ConfigFile, configJson, join(path, "tokenizer_config.json")) : {};
  const size = idCount(content);
  const library = load(content, config, file);
  return {
    describe: () => description(content, config, size, library),
    encode(text, addSpecialTokens) {
      const { ids } = library.encode(text, { add_special_tokens: addSpecialTokens });
      if (ids.length > MOST_TOKENS) {
        throw new HcinferError("input", `the text has ${ids.length} tokens, more than ${MOST_TOKENS}`);
      }
      // A model without a token for the unknown gives undefined for it.
      if (ids.some((id) => !Number.isInteger(id) || id < 0 || id >= size)) {
        throw new HcinferError("input", "the tokenizer has no token for some characters of the text");
      }
      return Int32Array.from(ids).buffer;
    },
    decode(ids, skipSpecialTokens) {
      const known = ids.filter((id) => library.id_to_token(id) !== undefined);
      if (known.length === 0) return "";
      return library.decode(known, {
        skip_special_tokens: skipSpecialTokens,
        clean_up_tokenization_spaces: false,
      });
    },
    idOf: (token) => library.token_to_id(token),
  };
}

function load(
  content: z.infer<typeof TokenizerFile>,
  config: z.infer<typeof ConfigFile>,
  file: string,
): Library {
  try {
    // The library takes absent fields for errors and null ones for defaults.
    const given = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== null));
    const library = new Library(content, given);
    // Faults of rules and merges show only when they are used.
    library.decode(library.encode("Aa 1, é\n").ids.filter(Number.isInteger).concat(0));
    return library;
  } catch (cause) {
    throw new HcinferError("checkpoint", `${file} is not supported: ${(cause as Error).message}`, { cause });
  }
}

function description(
  { added_tokens, decoder, model }: z.infer<typeof TokenizerFile>,
  config: z.infer<typeof ConfigFile>,
  size: number,
  library: Library,
): TokenizerDescription {
  const { bos_token, eos_token, chat_template, additional_special_tokens } = config;
  const shown: TokenizerConfig = { bos_token, eos_token, chat_template };
  const decoding = isLinear(decoder, added_tokens.length)
    ? {
      tokens: library.model?.vocab ?? [],
      decoder,
      addedTokens: added_tokens,
      endOfWordSuffix: model["end_of_word_suffix"],
      additionalSpecialTokens: additional_special_tokens ?? [],
    }
    : undefined;
  return { size, config: shown, decoding };
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

function parse<S extends z.ZodType>(schema: S, bytes: SharedArrayBuffer, file: string): z.infer<S> {
  let content: unknown;
  try {
    content = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes).slice()));
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
