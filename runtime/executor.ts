/**
 * What runs a plan. An executor holds the key-value cache, from which sequences take their pages, and the buffers of one
 * step; a step holds runs of one or several sequences.
 *
 * Order. When a step is over, its logits are written and the keys and values of its tokens are in the cache. Within a
 * step, a node runs after every node whose outputs it reads; lanes meet only in the plan's signal and wait. Returned
 * logits are views of the executor's buffer: the next step overwrites them. One step at a time.
 *
 * Positions. A run at position p reads what its sequence has cached for 0..p-1 and its own tokens, and forgets
 * whatever was cached at p and later. So position 0 begins the sequence anew, and a smaller position than its length
 * goes back in it. A run that would leave a hole is refused.
 *
 * Bit-identity. On one executor, for the same bundle and the same `as` of every token, logits are identical bit for
 * bit from run to run, for every number of threads, with corrections "async" or "inline", for every way the same
 * tokens are cut into steps, and whatever other sequences are in them. Between executors they only agree
 * numerically: tests/parity states how closely.
 */
import type { CorrectionMode, ModelInfo, Plan } from "../compiler/plan.ts";
import { HcinferError } from "../compiler/errors.ts";
import { type Limits, MOST_RUNS } from "../compiler/memory.ts";

export type { CorrectionMode } from "../compiler/plan.ts";

/**
 * How a token's sparse residual is computed: "decode" adds the rows of the channels this token chose, "prefill" adds
 * all rows (a prompt can afford them). A low_rank correction is the same in both.
 */
export type StepKind = "prefill" | "decode";

/** The tokens that one text has in the cache of one executor. Closing it gives its memory back. */
export interface Sequence extends Disposable {
  /** Tokens cached: positions 0 to length - 1. */
  readonly length: number;
  /** A second sequence that begins with the same tokens; what both hold is shared until one of them writes to it. */
  fork(): Sequence;
}

/** Consecutive tokens of one sequence. */
export interface Run {
  readonly sequence: Sequence;
  /** Of the first token: at most the sequence's length. */
  readonly position: number;
  /** Token ids, at least one. */
  readonly tokens: Int32Array;
  readonly as: StepKind;
  /** Which tokens need logits. */
  readonly logits: "none" | "last" | "all";
}

/** Runs of distinct sequences: at most MOST_RUNS, and together at most `capacity` tokens. */
export interface StepRequest {
  readonly runs: readonly Run[];
}

export interface Executor extends Disposable {
  readonly name: string;
  readonly model: ModelInfo;
  /** Most tokens in one step. */
  readonly capacity: number;
  /** Most tokens in a sequence. */
  readonly contextLength: number;
  /** A new, empty sequence. */
  sequence(): Sequence;
  /**
   * Runs the tokens through the model. Returns for each run its logits, f32 [rows, vocabularySize] with 0, 1 or
   * `tokens.length` rows, valid until the next step.
   * @throws {HcinferError} "input": a request that `checkStep` refuses, a full cache; "bundle": keys or values that
   *   the cache's f16 cannot hold. Refused requests change nothing; after "bundle", the step's sequences are as long as
   *   where their runs began
   */
  step(request: StepRequest): readonly Float32Array[];
  /**
   * The same without holding the event loop. When `signal` aborts, the step ends within milliseconds and the promise is
   * rejected with the signal's reason; sequences are then as long as where their runs began.
   */
  stepAsync(request: StepRequest, signal?: AbortSignal): Promise<readonly Float32Array[]>;
}

/** Limits are those of `limitsOf` (compiler/memory.ts), which gives their defaults. */
export interface ExecutorOptions extends Partial<Limits> {
  readonly threads: number;
  /** "auto": what the plan says. "off" leaves every correction out: the backbone alone. */
  readonly corrections: CorrectionMode;
}

/** What executors read of a bundle (compiler/bundle.ts opens one from disk). */
export interface ExecutableBundle {
  readonly plan: Plan;
  /** A tensor of weights.safetensors; `bytes` is a view of the mapping, little-endian. */
  tensor(
    name: string,
  ): { readonly dtype: string; readonly shape: readonly number[]; readonly bytes: Uint8Array };
}

/** Number of rows of logits that a run returns. */
export function logitRows(run: Run): number {
  return run.logits === "none" ? 0 : run.logits === "last" ? 1 : run.tokens.length;
}

/**
 * Refuses a step that no executor can run: no runs or too many, a sequence twice, a run without tokens, more tokens
 * than the capacity, a token id outside the vocabulary, a position past the sequence's end, or an end past the context.
 * @throws {HcinferError} "input"
 */
export function checkStep(
  executor: Pick<Executor, "model" | "capacity" | "contextLength">,
  { runs }: StepRequest,
): void {
  const refuse = (message: string): never => {
    throw new HcinferError("input", message);
  };
  if (runs.length === 0 || runs.length > MOST_RUNS) {
    refuse(`a step has 1 to ${MOST_RUNS} runs, found ${runs.length}`);
  }
  if (new Set(runs.map((run) => run.sequence)).size < runs.length) {
    refuse("a step has one run of a sequence, found two");
  }
  const count = runs.reduce((sum, run) => sum + run.tokens.length, 0);
  if (count > executor.capacity) {
    refuse(`a step of ${count} tokens exceeds the executor's capacity of ${executor.capacity}`);
  }
  const vocabulary = executor.model.vocabularySize;
  for (const { sequence, position, tokens } of runs) {
    if (tokens.length === 0) refuse("a run needs at least one token");
    if (!Number.isInteger(position) || position < 0 || position > sequence.length) {
      refuse(`a run at position ${position} leaves a hole: ${sequence.length} tokens are cached`);
    }
    if (position + tokens.length > executor.contextLength) {
      refuse(
        `${position + tokens.length} tokens do not fit the context of ${executor.contextLength}: ` +
          "shorten the prompt, or ask for a longer context",
      );
    }
    const bad = tokens.findIndex((id) => id < 0 || id >= vocabulary);
    if (bad >= 0) refuse(`token ${tokens[bad]} at index ${bad} is outside the vocabulary of ${vocabulary}`);
  }
}
