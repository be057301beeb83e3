/**
 * How the makers of a model sample from it: generation_config.json, with the meaning that transformers gives it. Temperature,
 * top-k, top-p and min-p hold only with `do_sample`; without it the model is greedy. A field that is left out, or whose value
 * is none, is off (transformers takes some defaults of its own, such as a top-k of 50).
 */
import { join } from "node:path";
import { z } from "zod";
import { HcinferError } from "../compiler/errors.ts";
import { parseJson } from "../compiler/json.ts";
import type { SamplerOptions } from "./sampler.ts";
import type { TextFiles } from "./text_files.ts";

const FILE = "generation_config.json";

/** Files in use say -1, null or 1.5 for "off": what is outside a field's range is as good as left out. */
const within = (schema: z.ZodType<number>) => schema.optional().catch(undefined);

const GenerationFile = z.looseObject({
  do_sample: z.boolean().optional().catch(undefined),
  temperature: within(z.number().min(0).max(1000)),
  top_k: within(z.int().min(1)),
  top_p: within(z.number().gt(0).lt(1)),
  min_p: within(z.number().gt(0).max(1)),
  repetition_penalty: within(z.number().min(0.01).max(100)),
});

/** What a sampler of the model takes where nothing else is asked for; only fields that are not off. */
export type SamplingDefaults = Pick<
  SamplerOptions,
  "temperature" | "topK" | "topP" | "minP" | "repetitionPenalty"
>;

/**
 * The defaults among `files`; without a file, none.
 * @throws {HcinferError} "checkpoint": the file is no JSON object
 */
export function samplingDefaults(files: TextFiles): SamplingDefaults {
  const bytes = files.file(FILE);
  if (bytes === undefined) return {};
  const found = read(bytes, join(files.path, FILE));
  const { repetition_penalty: repetition = 1 } = found;
  const always = repetition === 1 ? {} : { repetitionPenalty: repetition };
  if (found.do_sample !== true || found.temperature === 0) return always;
  return {
    temperature: found.temperature ?? 1,
    ...found.top_k === undefined ? {} : { topK: found.top_k },
    ...found.top_p === undefined ? {} : { topP: found.top_p },
    ...found.min_p === undefined ? {} : { minP: found.min_p },
    ...always,
  };
}

function read(bytes: Uint8Array, file: string): z.infer<typeof GenerationFile> {
  try {
    return GenerationFile.parse(parseJson(bytes));
  } catch (cause) {
    const message = `${file} is no JSON object: copy the one that came with the weights, or leave it out`;
    throw new HcinferError("checkpoint", message, { cause });
  }
}
