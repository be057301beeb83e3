/**
 * Which decoders of a tokenizer.json need no limit in time: those whose every step is known to take time, and give
 * text, in proportion to its input. Decoding happens once a generated token.
 */
import { z } from "zod";

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
  z.looseObject({
    type: z.literal("Replace"),
    pattern: z.strictObject({ String: literal }),
    content: z.string(),
  }) // What grows in every step could double a text 16 times.
    .refine(({ pattern, content }) => content.length <= pattern.String.length),
]);
const Linear = z.union([
  z.null(),
  Step,
  z.looseObject({ type: z.literal("Sequence"), decoders: z.array(Step).max(MOST_STEPS) }),
]);

/** Whether `decoder` is such a one, beside this many added tokens. */
export function isLinearDecoder(decoder: unknown, addedTokens: number): boolean {
  return addedTokens <= MOST_ADDED_TOKENS && Linear.safeParse(decoder).success;
}
