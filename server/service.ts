/** What the server answers with: one model, its texts' tokens, and the batch that computes them. */
import { HcinferError } from "../compiler/errors.ts";
import type { Batch } from "../runtime/batch.ts";
import type { ChatTemplate } from "../runtime/chat.ts";
import type { TextCoding } from "../runtime/conversation.ts";
import type { SamplingDefaults } from "../runtime/generation_config.ts";
import { Sampler } from "../runtime/sampler.ts";
import { type ChatRequest, type CompletionRequest, samplingOf, stopsOf, textOf } from "./requests.ts";
import { answerText, type Piece } from "./text.ts";

/** Of a completion that does not say how long it may be, as in the API. */
const COMPLETION_TOKENS = 16;
/** What the API samples with where neither the request nor the model's makers say it. */
const TEMPERATURE = 1;

export interface ServiceOptions {
  readonly name: string;
  /** Seconds since 1970. */
  readonly created: number;
  readonly batch: Batch;
  readonly tokenizer: TextCoding;
  readonly template: ChatTemplate | undefined;
  readonly defaults: SamplingDefaults;
  readonly stopTokens: readonly number[];
}

export class Service {
  readonly name: string;
  readonly created: number;
  readonly batch: Batch;
  readonly #options: ServiceOptions;

  constructor(options: ServiceOptions) {
    this.name = options.name;
    this.created = options.created;
    this.batch = options.batch;
    this.#options = options;
  }

  /** @throws {HcinferError} "usage": sampling that contradicts itself */
  complete(request: CompletionRequest, signal: AbortSignal): ReadableStream<Piece> {
    const { tokenizer } = this.#options;
    const [only] = typeof request.prompt === "string" ? [request.prompt] : request.prompt;
    const prompt = typeof only === "string"
      ? tokenizer.encode(only)
      : Int32Array.from(Array.isArray(only) ? only : request.prompt as readonly number[]);
    const maxTokens = request.max_tokens ?? COMPLETION_TOKENS;
    return this.#answer(request, prompt, maxTokens, request.logprobs ?? undefined, signal);
  }

  /** @throws {HcinferError} "input": no chat template; "checkpoint": the template refuses the conversation */
  chat(request: ChatRequest, signal: AbortSignal): ReadableStream<Piece> {
    const { tokenizer, template } = this.#options;
    if (template === undefined) {
      throw new HcinferError("input", `${this.name} has no chat template: use /v1/completions`);
    }
    const messages = request.messages.map(({ role, content }) => ({
      role: role === "developer" ? "system" : role,
      content: textOf(content),
    }));
    const prompt = tokenizer.encode(template.render(messages), { addSpecialTokens: false });
    const maxTokens = request.max_completion_tokens ?? request.max_tokens ?? Infinity;
    const logprobs = request.logprobs === true ? request.top_logprobs ?? 0 : undefined;
    return this.#answer(request, prompt, maxTokens, logprobs, signal);
  }

  #answer(
    request: ChatRequest | CompletionRequest,
    prompt: Int32Array,
    maxTokens: number,
    logprobs: number | undefined,
    signal: AbortSignal,
  ): ReadableStream<Piece> {
    const { batch, tokenizer, defaults, stopTokens } = this.#options;
    const sampler = new Sampler({ temperature: TEMPERATURE, ...defaults, ...samplingOf(request) });
    const stopTexts = stopsOf(request);
    return answerText(batch, tokenizer, {
      prompt,
      sampler,
      maxTokens,
      stopTokens,
      stopTexts,
      logprobs,
      signal,
    });
  }
}
