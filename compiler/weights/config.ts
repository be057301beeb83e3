/**
 * config.json and generation_config.json of a Hugging Face folder: what the compiler needs of them, checked. Fields
 * keep their names (`hidden_size`), because the model descriptions in graphs/ read them by these names; fields not
 * listed here are passed on as they are.
 *
 * Bounds are generous multiples of the largest published models. They are there so that nothing is allocated or
 * looped over because a file says so, not to judge a model.
 *
 * What would silently give other numbers (scaled rotary embeddings, sliding windows, other activations, a checkpoint
 * that is already quantised) is refused here, whatever a description does with it.
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
  intermediate_size: size(1 << 20),
  num_hidden_layers: size(2048),
  num_attention_heads: size(4096),
  num_key_value_heads: size(4096).nullish(),
  head_dim: size(4096).nullish(),
  vocab_size: size(1 << 24),
  max_position_embeddings: size(1 << 28),
  rms_norm_eps: z.number().positive().max(0.1),
  rope_theta: z.number().min(1).max(1e15).nullish(),
  rope_parameters: z.looseObject({
    rope_theta: z.number().min(1).max(1e15).nullish(),
    rope_type: z.string().nullish(),
  }).nullish(),
  rope_scaling: z.looseObject({ rope_type: z.string().nullish(), type: z.string().nullish() }).nullish(),
  hidden_act: z.string(),
  tie_word_embeddings: z.boolean().nullish(),
  attention_bias: z.boolean().nullish(),
  mlp_bias: z.boolean().nullish(),
  use_sliding_window: z.boolean().nullish(),
  sliding_window: z.int().nonnegative().nullish(),
  partial_rotary_factor: z.number().nullish(),
  bos_token_id: tokenIds,
  eos_token_id: tokenIds,
});

const GenerationFile = z.looseObject({ bos_token_id: tokenIds, eos_token_id: tokenIds });

/** A checked config.json: defaults filled in, everything else of the file passed on. */
export interface Config {
  readonly model_type: string;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly vocab_size: number;
  readonly max_position_embeddings: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
  readonly tie_word_embeddings: boolean;
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
  } else if (headDim % 2 !== 0) {
    problems.push(`head_dim ${headDim} is odd; rotary embeddings turn pairs`);
  }
  if (found.num_attention_heads % kvHeads !== 0) {
    problems.push(
      `num_attention_heads ${found.num_attention_heads} is no multiple of num_key_value_heads ${kvHeads}`,
    );
  }
  problems.push(...unsupported(found));
  if (problems.length > 0) throw refusal(file, problems);
  return {
    ...found,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    rope_theta: found.rope_theta ?? found.rope_parameters?.rope_theta ?? 10000,
    // The default of the Llama and Qwen classes, which write the field when it is true.
    tie_word_embeddings: found.tie_word_embeddings ?? false,
  };
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

function unsupported(config: z.infer<typeof ConfigFile>): string[] {
  const problems: string[] = [];
  const rope = config.rope_scaling?.rope_type ?? config.rope_scaling?.type ??
    config.rope_parameters?.rope_type;
  if ((rope !== undefined && rope !== null && rope !== "default")) {
    problems.push(`rotary embeddings scaled as "${rope}" are not supported; only unscaled ones are`);
  }
  if (config.hidden_act !== "silu") {
    problems.push(`hidden_act "${config.hidden_act}" is not supported; only "silu" is`);
  }
  if (config.attention_bias) problems.push("attention_bias is not supported");
  if (config.mlp_bias) problems.push("mlp_bias is not supported");
  const window = config.use_sliding_window ?? typeof config.sliding_window === "number";
  if (window) problems.push("sliding-window attention is not supported");
  if ((config.partial_rotary_factor ?? 1) !== 1) problems.push("partial_rotary_factor is not supported");
  const quantized = config["quantization_config"];
  if (quantized !== undefined && quantized !== null) {
    problems.push(
      "the checkpoint is already quantised (quantization_config); give the original in bf16, f16 or f32",
    );
  }
  return problems;
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
