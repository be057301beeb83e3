/**
 * What runs a plan. An executor holds one sequence: its key-value cache and the buffers of a step.
 *
 * Order. `step` is synchronous: when it returns, the logits are written and the keys and values of its tokens are
 * in the cache. Within a step, a node runs after every node whose outputs it reads; lanes meet only in the plan's
 * signal and wait. The returned logits are a view of the executor's buffer: the next `step` overwrites it.
 *
 * Positions. A step at position p reads what earlier steps cached for 0..p-1 and its own tokens, and forgets
 * whatever was cached at p and later. So position 0 begins a new sequence, and a smaller position than the last
 * goes back in the present one. A step that would leave a hole is refused.
 *
 * Bit-identity. On one executor, for the same bundle and the same `as` of every token, logits are identical bit for
 * bit from run to run, for every number of threads, with corrections "async" or "inline", and for every way the
 * same tokens are cut into steps. Between executors they only agree numerically: tests/parity states how closely.
 */
import type { ModelInfo, Plan } from "../compiler/plan.ts";
import { HcinferError } from "../compiler/errors.ts";

/**
 * How a token's sparse residual is computed: "decode" adds the rows of the channels this token chose, "prefill" adds
 * all rows (a prompt can afford them). A low_rank correction is the same in both.
 */
export type StepKind = "prefill" | "decode";

export interface StepRequest {
  /** 1 to `capacity` token ids, the tokens at `position`, `position + 1`, ... */
  readonly tokens: Int32Array;
  readonly position: number;
  readonly as: StepKind;
  /** Which tokens need logits. */
  readonly logits: "none" | "last" | "all";
}

export interface Executor extends Disposable {
  readonly name: string;
  readonly model: ModelInfo;
  /** Most tokens in one step. */
  readonly capacity: number;
  /** Most tokens in the sequence. */
  readonly contextLength: number;
  /**
   * Runs the tokens through the model. Returns the logits, f32 [rows, vocabularySize] with 0, 1 or
   * `tokens.length` rows, valid until the next step.
   * @throws {HcinferError} "input": a request that `checkStep` refuses
   */
  step(request: StepRequest): Float32Array;
}

export type CorrectionMode = "auto" | "async" | "inline" | "off";

export interface ExecutorOptions {
  readonly threads: number;
  /** "auto": what the plan says. "off" leaves every correction out: the backbone alone. */
  readonly corrections: CorrectionMode;
  /** Default: the model's, which decides how much memory the cache takes. */
  readonly contextLength?: number;
  readonly capacity?: number;
}

/** What executors read of a bundle (compiler/bundle.ts opens one from disk). */
export interface ExecutableBundle {
  readonly plan: Plan;
  /** A tensor of weights.safetensors; `bytes` is a view of the mapping, little-endian. */
  tensor(
    name: string,
  ): { readonly dtype: string; readonly shape: readonly number[]; readonly bytes: Uint8Array };
}

/** Number of rows that a step returns. */
export function logitRows(request: StepRequest): number {
  return request.logits === "none" ? 0 : request.logits === "last" ? 1 : request.tokens.length;
}

/**
 * Refuses a step that no executor can run: no tokens or more than the capacity, a token id outside the vocabulary, a
 * position past the `cached` tokens, or an end past the context.
 * @throws {HcinferError} "input"
 */
export function checkStep(
  executor: Pick<Executor, "model" | "capacity" | "contextLength">,
  request: StepRequest,
  cached: number,
): void {
  const { tokens, position } = request;
  const refuse = (message: string): never => {
    throw new HcinferError("input", message);
  };
  if (tokens.length === 0) refuse("a step needs at least one token");
  if (tokens.length > executor.capacity) {
    refuse(`a step of ${tokens.length} tokens exceeds the executor's capacity of ${executor.capacity}`);
  }
  if (!Number.isInteger(position) || position < 0 || position > cached) {
    refuse(`a step at position ${position} leaves a hole: ${cached} tokens are cached`);
  }
  if (position + tokens.length > executor.contextLength) {
    refuse(
      `${position + tokens.length} tokens do not fit the context of ${executor.contextLength}: ` +
        "shorten the prompt, or ask for a longer context",
    );
  }
  const vocabulary = executor.model.vocabularySize;
  const bad = tokens.findIndex((id) => id < 0 || id >= vocabulary);
  if (bad >= 0) refuse(`token ${tokens[bad]} at index ${bad} is outside the vocabulary of ${vocabulary}`);
}
