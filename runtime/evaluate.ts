/**
 * How well a model predicts a text, and how far it is from another one. The text is cut into windows; each is a
 * sequence of its own without a begin token, and the logits at its positions 0..n-2 predict its tokens 1..n-1. In
 * natural logarithms throughout.
 */
import { HcinferError } from "../compiler/errors.ts";
import type { Executor, Run, Sequence, StepKind } from "./executor.ts";

/**
 * Loss of one prediction from logits [vocabulary] each: `nll` is -log softmax(logits)[target], `kl` is
 * KL(softmax(reference) || softmax(logits)), 0 without a reference. In nats.
 */
export type TokenLoss = (
  logits: Float32Array,
  reference: Float32Array | undefined,
  target: number,
) => { readonly nll: number; readonly kl: number };

export interface EvaluateOptions {
  readonly tokens: Int32Array;
  /** Tokens in a window; 256 by default. The last may be shorter, down to 2. */
  readonly window?: number;
  /** Default: "decode", every position corrected as a generated token is. */
  readonly as?: StepKind;
  /** What to measure the divergence from, usually the bf16 model. It always runs as `as` says. */
  readonly reference?: Executor;
  /** Ends the evaluation: its promise is rejected with the signal's reason. */
  readonly signal?: AbortSignal;
  /** After each window, in tokens. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly tokenLoss?: TokenLoss;
}

export interface Evaluation {
  readonly windows: number;
  /** Predicted tokens: all but the first of each window. */
  readonly predictions: number;
  /** Mean of -log p(token), nats. */
  readonly negativeLogLikelihood: number;
  /** exp of it. */
  readonly perplexity: number;
  /** Mean KL(reference || model) over the predictions, nats; undefined without a reference. */
  readonly divergence: number | undefined;
}

/**
 * Runs `executor`, and the reference beside it, over the windows of a text.
 * @throws {HcinferError} "input": fewer than two tokens; a window longer than a context; other vocabularies;
 *   "bundle": logits that are not numbers
 */
export async function evaluate(executor: Executor, options: EvaluateOptions): Promise<Evaluation> {
  const { tokens, window = 256, as = "decode", reference, signal, tokenLoss = lossOfToken } = options;
  check(executor, options, window);
  const executors = reference ? [executor, reference] : [executor];
  using sequences = new Sequences(executors);
  const chunk = Math.min(...executors.map((e) => e.capacity));
  const vocabulary = executor.model.vocabularySize;
  let windows = 0, predictions = 0, nll = 0, kl = 0;
  for (let start = 0; tokens.length - start >= 2; start += window) {
    const text = tokens.subarray(start, start + window);
    // The last token is only predicted; nothing is predicted from it.
    const seen = text.length - 1;
    for (let position = 0; position < seen; position += chunk) {
      const step = text.subarray(position, Math.min(position + chunk, seen));
      const [logits, others] = await sequences.step({ tokens: step, position, as, logits: "all" }, signal);
      for (let t = 0; t < step.length; t++) {
        const row = (all: Float32Array) => all.subarray(t * vocabulary, (t + 1) * vocabulary);
        const loss = tokenLoss(row(logits!), others && row(others), text[position + t + 1]!);
        nll += loss.nll;
        kl += loss.kl;
        predictions++;
      }
    }
    windows++;
    options.onProgress?.(Math.min(start + window, tokens.length), tokens.length);
  }
  if (!Number.isFinite(nll) || !Number.isFinite(kl)) {
    throw new HcinferError(
      "bundle",
      `the loss is ${nll} and the divergence ${kl}: the model computes logits that are not numbers`,
    );
  }
  return {
    windows,
    predictions,
    negativeLogLikelihood: nll / predictions,
    perplexity: Math.exp(nll / predictions),
    divergence: reference && kl / predictions,
  };
}

/** A sequence on each executor, which all step alike. */
class Sequences implements Disposable {
  readonly #all: readonly { readonly executor: Executor; readonly sequence: Sequence }[];

  constructor(executors: readonly Executor[]) {
    this.#all = executors.map((executor) => ({ executor, sequence: executor.sequence() }));
  }

  async step(run: Omit<Run, "sequence">, signal: AbortSignal | undefined): Promise<Float32Array[]> {
    const logits = [];
    for (const { executor, sequence } of this.#all) {
      logits.push((await executor.stepAsync({ runs: [{ ...run, sequence }] }, signal))[0]!);
    }
    return logits;
  }

  [Symbol.dispose](): void {
    for (const { sequence } of this.#all) sequence[Symbol.dispose]();
  }
}

function check(executor: Executor, { tokens, reference }: EvaluateOptions, window: number): void {
  const refuse = (message: string): never => {
    throw new HcinferError("input", message);
  };
  if (tokens.length < 2) refuse(`a text of ${tokens.length} tokens predicts nothing: at least 2 are needed`);
  if (!Number.isInteger(window) || window < 2) refuse(`a window has at least 2 tokens, found ${window}`);
  // A window's last token never enters the cache.
  const longest = Math.min(window, tokens.length) - 1;
  for (const { contextLength, name } of reference ? [executor, reference] : [executor]) {
    if (longest > contextLength) {
      refuse(`a window of ${window} tokens does not fit the context of ${contextLength} (${name})`);
    }
  }
  const own = executor.model.vocabularySize;
  const other = reference?.model.vocabularySize ?? own;
  if (own !== other) {
    refuse(`the reference has ${other} tokens in its vocabulary, the model ${own}: they cannot be compared`);
  }
}

/** `TokenLoss` in double precision. */
export function lossOfToken(
  logits: Float32Array,
  reference: Float32Array | undefined,
  target: number,
): { nll: number; kl: number } {
  const own = scale(logits);
  const nll = own.logSum - (logits[target]! - own.most);
  if (!reference) return { nll, kl: 0 };
  const other = scale(reference);
  let kl = 0;
  for (let i = 0; i < logits.length; i++) {
    const logP = reference[i]! - other.most - other.logSum;
    const p = Math.exp(logP);
    // A token that the reference rules out contributes nothing, whatever the model says.
    if (p !== 0) kl += p * (logP - (logits[i]! - own.most - own.logSum));
  }
  return { nll, kl };
}

/** log softmax(x)[i] = (x[i] - most) - logSum: the largest logit is taken off first, so that nothing overflows. */
function scale(logits: Float32Array): { readonly most: number; readonly logSum: number } {
  let most = -Infinity;
  for (let i = 0; i < logits.length; i++) if (!(logits[i]! <= most)) most = logits[i]!;
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - most);
  return { most, logSum: Math.log(sum) };
}
