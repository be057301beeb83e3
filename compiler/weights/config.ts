/**
 * config.json and generation_config.json of a Hugging Face folder: what the compiler needs of every architecture,
 * checked. Fields keep their names (`hidden_size`), because the model descriptions in graphs/ read them by these names;
 * all others are passed on as they are, and a description demands or refuses what its architecture does.
 *
 * Bounds are generous multiples of the largest published models. They are there so that nothing is allocated or
 * looped over because a file says so, not to judge a model.
 *
 * A checkpoint that is already quantised is refused here: its tensors are not the weights that a description names.
 */
import { z } from "zod";
import { HcinferError } from "../errors.ts";
import { parseJson as parseBounded } from "../json.ts";

const size = (most: number) => z.int().positive().max(most);
const tokenId = z.int().nonnegative().max(1 << 26);
const tokenIds = z.union([tokenId, z.array(tokenId).max(1024)]).nullish();

const ConfigFile = z.looseObject({
  model_type: z.string().min(1).max(100),
  hidden_size: size(1 << 17),
  num_hidden_layers: size(2048),
  num_attention_heads: size(4096),
  num_key_value_heads: size(4096).nullish(),
  head_dim: size(4096).nullish(),
  vocab_size: size(1 << 24),
  max_position_embeddings: size(1 << 28),
  tie_word_embeddings: z.boolean().nullish(),
  bos_token_id: tokenIds,
  eos_token_id: tokenIds,
});

const GenerationFile = z.looseObject({ bos_token_id: tokenIds, eos_token_id: tokenIds });

/** A checked config.json: defaults filled in, everything else of the file passed on. */
export interface Config {
  readonly model_type: string;
  readonly hidden_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly vocab_size: number;
  readonly max_position_embeddings: number;
  /** Left out where the file leaves it out: its default is the architecture's. */
  readonly tie_word_embeddings?: boolean | null | undefined;
  readonly [field: string]: unknown;
}

/** What generation_config.json (or, without it, config.json) says about the ends of a text. */
export interface TokenEnds {
  readonly bosToken: number | null;
  readonly stopTokens: readonly number[];
}

/** Checks the text of a config.json. Throws HcinferError("checkpoint") naming `file` and every field at fault. */
export function parseConfig(text: string, file: string): Config {
  const found = check(ConfigFile, text, file);
  const kvHeads = found.num_key_value_heads ?? found.num_attention_heads;
  const headDim = found.head_dim ?? found.hidden_size / found.num_attention_heads;
  const problems: string[] = [];
  if (!Number.isInteger(headDim)) {
    problems.push(
      `head_dim is missing and hidden_size ${found.hidden_size} is no multiple of num_attention_heads ${found.num_attention_heads}`,
    );
  }
  if (found.num_attention_heads % kvHeads !== 0) {
    problems.push(
      `num_attention_heads ${found.num_attention_heads} is no multiple of num_key_value_heads ${kvHeads}`,
    );
  }
  if ((found["quantization_config"] ?? null) !== null) {
    problems.push(
      "the checkpoint is already quantised (quantization_config); give the original in bf16, f16 or f32",
    );
  }
  if (problems.length > 0) throw refusal(file, problems);
  return { ...found, num_key_value_heads: kvHeads, head_dim: headDim };
}

/** Reads begin and end tokens; `generation` is the text of generation_config.json when there is one. */
export function parseTokenEnds(config: Config, generation: string | undefined, file: string): TokenEnds {
  const found = generation === undefined ? undefined : check(GenerationFile, generation, file);
  const ids = (value: unknown) => [tokenIds.safeParse(value).data ?? []].flat();
  return {
    bosToken: ids(found?.bos_token_id ?? config["bos_token_id"])[0] ?? null,
    stopTokens: [...new Set(ids(found?.eos_token_id ?? config["eos_token_id"]))],
  };
}

function check<S extends z.ZodType>(schema: S, text: string, file: string): z.infer<S> {
  const parsed = schema.safeParse(parseJson(text, file));
  if (parsed.success) return parsed.data;
  throw refusal(
    file,
    parsed.error.issues.map((issue) => `${issue.path.join(".") || "the file"}: ${issue.message}`),
  );
}

/** JSON of a file of the checkpoint; throws HcinferError("checkpoint") when it is none. */
export function parseJson(text: string, file: string): unknown {
  try {
    return parseBounded(new TextEncoder().encode(text));
  } catch (cause) {
    throw new HcinferError("checkpoint", `${file} is not JSON: ${(cause as Error).message}`, { cause });
  }
}

function refusal(file: string, problems: readonly string[]): HcinferError {
  return new HcinferError(
    "checkpoint",
    `${file} does not fit:\n${problems.map((p) => `  - ${p}`).join("\n")}`,
  );
}
