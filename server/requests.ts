/**
 * Requests of the OpenAI API for text (https://platform.openai.com/docs/api-reference, completions and chat), as far as they
 * are answered here. Fields of sampling that other servers add are taken, too. What is not known is refused, not ignored: a
 * field that does nothing misleads.
 */
import { z } from "zod";

const MOST_STOPS = 16, MOST_STOP_CHARACTERS = 1024;
const MOST_TOP_LOGPROBS = 20;

const sampling = {
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z.int().min(0).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  seed: z.int().min(0).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  repetition_penalty: z.number().min(0.01).max(100).nullish(),
};

const stop = z.string().min(1).max(MOST_STOP_CHARACTERS);
const common = {
  model: z.string(),
  ...sampling,
  stop: z.union([stop, z.array(stop).max(MOST_STOPS)]).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ include_usage: z.boolean().optional() }).nullish(),
  /** One answer a request. */
  n: z.literal(1).nullish(),
  /** Who asks, and notes: of no effect in the API itself. */
  user: z.string().nullish(),
  metadata: z.record(z.string(), z.string()).nullish(),
  store: z.literal(false).nullish(),
};

const token = z.int().min(0);

export const CompletionRequest = z.strictObject({
  ...common,
  prompt: z.union([
    z.string(),
    z.tuple([z.string()]),
    z.array(token).min(1),
    z.tuple([z.array(token).min(1)]),
  ]),
  max_tokens: z.int().min(1).nullish(),
  logprobs: z.int().min(0).max(MOST_TOP_LOGPROBS).nullish(),
  echo: z.literal(false).nullish(),
  best_of: z.literal(1).nullish(),
  suffix: z.null().optional(),
});
export type CompletionRequest = z.infer<typeof CompletionRequest>;

const textPart = z.strictObject({ type: z.literal("text"), text: z.string() });
const message = z.strictObject({
  role: z.enum(["system", "developer", "user", "assistant", "tool"]),
  content: z.union([z.string(), z.array(textPart).min(1)]),
  name: z.string().optional(),
  tool_call_id: z.string().optional(),
});

export const ChatRequest = z.strictObject({
  ...common,
  messages: z.array(message).min(1),
  max_tokens: z.int().min(1).nullish(),
  max_completion_tokens: z.int().min(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(MOST_TOP_LOGPROBS).nullish(),
  response_format: z.strictObject({ type: z.literal("text") }).nullish(),
});
export type ChatRequest = z.infer<typeof ChatRequest>;

type Sampling = Pick<CompletionRequest, keyof typeof sampling>;

/** The fields of a request that say how to sample, by our names, where it has them. */
export function samplingOf(request: Sampling) {
  const fields = {
    temperature: request.temperature,
    topP: request.top_p,
    topK: request.top_k,
    minP: request.min_p,
    seed: request.seed,
    frequencyPenalty: request.frequency_penalty,
    presencePenalty: request.presence_penalty,
    repetitionPenalty: request.repetition_penalty,
  };
  const given = Object.entries(fields).filter((entry): entry is [string, number] =>
    typeof entry[1] === "number"
  );
  return Object.fromEntries(given) as { readonly [K in keyof typeof fields]?: number };
}

export function stopsOf({ stop }: Pick<CompletionRequest, "stop">): readonly string[] {
  return typeof stop === "string" ? [stop] : stop ?? [];
}

export function textOf(content: z.infer<typeof message>["content"]): string {
  return typeof content === "string" ? content : content.map(({ text }) => text).join("");
}
