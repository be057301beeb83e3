/**
 * Ids to text in the caller's thread, where it happens once a generated token: only for decoders whose every step is
 * known to take time, and give text, in proportion to its input. The text thread decides that and sends the tokens
 * (tokenizer_work.ts); any other decoder stays in that thread.
 */
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { z } from "zod";
import type { DecodingTable } from "./text_calls.ts";

/** A literal is sought at every place of a text; published ones have 1 to 3 characters. */
const MOST_LITERAL = 16;

/** Published decoders have 4 steps. */
const MOST_STEPS = 16;

/** Looked through for each token. Gemma has 6,400. */
const MOST_ADDED_TOKENS = 10_000;

const literal = z.string().min(1).max(MOST_LITERAL);
const Step = z.discriminatedUnion("type", [
  z.looseObject({ type: z.enum(["ByteLevel", "ByteFallback", "Fuse", "Strip", "WordPiece"]) }),
  z.looseObject({ type: z.literal("Metaspace"), replacement: literal.nullish() }),
  // What grows in every step could double a text 16 times.
  z.looseObject({
    type: z.literal("Replace"),
    pattern: z.strictObject({ String: literal }),
    content: z.string(),
  })
    .refine(({ pattern, content }) => content.length <= pattern.String.length),
]);
const Linear = z.union([
  z.null(),
  Step,
  z.looseObject({ type: z.literal("Sequence"), decoders: z.array(Step).max(MOST_STEPS) }),
]);

/** Whether the `decoder` of a tokenizer.json is such a one. */
export function isLinear(decoder: unknown, addedTokens: number): boolean {
  return addedTokens <= MOST_ADDED_TOKENS && Linear.safeParse(decoder).success;
}

/** Text of `ids`, as `Tokenizer.decode` says. */
export type Decode = (ids: readonly number[], skipSpecialTokens: boolean) => string;

export function decoderOf(table: DecodingTable): Decode {
  const { tokens, decoder, addedTokens, endOfWordSuffix, additionalSpecialTokens } = table;
  const library = new Library({
    model: { type: "BPE", vocab: {}, merges: [], end_of_word_suffix: endOfWordSuffix },
    added_tokens: addedTokens,
    decoder,
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
  }, { additional_special_tokens: additionalSpecialTokens, clean_up_tokenization_spaces: false });
  // As the library would make it of the file's vocabulary, which would take it ten times longer.
  if (library.model) library.model.vocab = tokens as string[];
  return (ids, skipSpecialTokens) => {
    const known = ids.filter((id) => tokens[id] !== undefined);
    if (known.length === 0) return "";
    return library.decode(known, { skip_special_tokens: skipSpecialTokens });
  };
}
