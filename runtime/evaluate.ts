/**
 * How well a model predicts a text, and how far it is from another one. The text is cut into windows; each is a
 * sequence of its own without a begin token, and the logits at its positions 0..n-2 predict its tokens 1..n-1. In
 * natural logarithms throughout.
 */
import { HcinferError } from "../compiler/errors.ts";
import { MOST_RUNS } from "../compiler/memory.ts";
import { argmax } from "../ffi/engine.ts";
import type { Executor, Sequence, StepKind } from "./executor.ts";
import { packSteps } from "./step_packing.ts";
import { type Evaluation, type ReferenceSums, summarise, type WindowSums } from "./window_sums.ts";

export type { Evaluation } from "./window_sums.ts";

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
  /**
   * Windows that run as sequences of one step; 1 by default. The numbers do not depend on it. The executors' caches hold
   * as many, each in whole pages, and a step should hold their tokens.
   */
  readonly batch?: number;
  /** Default: "decode", every position corrected as a generated token is. */
  readonly as?: StepKind;
  /** What to measure the divergence from, usually the bf16 model. It always runs as `as` says. */
  readonly reference?: Executor;
  /** Ends the evaluation: its promise is rejected with the signal's reason. */
  readonly signal?: AbortSignal;
  /** After each window, in tokens. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly tokenLoss?: TokenLoss;
  /** The first windows' sums where they are known already: the evaluation goes on behind them, to the same numbers. */
  readonly finished?: readonly WindowSums[];
  /** After each window that was run, in order. */
  readonly onWindow?: (sums: WindowSums) => void;
}

/**
 * Runs `executor`, and the reference beside it, over the windows of a text.
 * @throws {HcinferError} "input": fewer than two tokens; a window longer than a context; other vocabularies; more
 *   finished windows than the text has; "bundle": logits that are not numbers
 */
export async function evaluate(executor: Executor, options: EvaluateOptions): Promise<Evaluation> {
  const { tokens, window = 256, batch = 1, reference, finished = [] } = options;
  check(executor, options, window);
  const windows = windowsOf(tokens, window);
  if (finished.length > windows.length) {
    throw new HcinferError(
      "input",
      `${finished.length} windows are finished, and the text has ${windows.length}`,
    );
  }
  const sums = [...finished];
  using sequences = new Sequences(reference ? [executor, reference] : [executor], batch);
  while (sums.length < windows.length) {
    const texts = windows.slice(sums.length, sums.length + batch);
    for (const found of await sumsOf(sequences, texts, options)) {
      sums.push(found);
      options.onWindow?.(found);
      options.onProgress?.(Math.min(sums.length * window, tokens.length), tokens.length);
    }
  }
  return summarise(sums);
}

/** Windows of `tokens`; a last one of a single token predicts nothing and is left out. */
export function windowsOf(tokens: Int32Array, window: number): Int32Array[] {
  const windows: Int32Array[] = [];
  for (let start = 0; tokens.length - start >= 2; start += window) {
    windows.push(tokens.subarray(start, start + window));
  }
  return windows;
}

/** Runs some windows side by side, from the beginning of their sequences. */
async function sumsOf(
  sequences: Sequences,
  windows: readonly Int32Array[],
  { as = "decode", signal, tokenLoss = lossOfToken }: EvaluateOptions,
): Promise<WindowSums[]> {
  const sums = windows.map(noLosses);
  // A window's last token is only predicted; nothing is predicted from it.
  for (const shares of packSteps(windows.map((window) => window.length - 1), sequences.capacity)) {
    const runs = shares.map(({ job, from, to }) => ({
      sequence: job,
      position: from,
      tokens: windows[job]!.subarray(from, to),
    }));
    const [logits = [], others] = await sequences.step(runs, as, signal);
    for (const [share, { job, from, to }] of shares.entries()) {
      addLosses(
        sums[job]!,
        windows[job]!.subarray(from + 1, to + 1),
        logits[share]!,
        others?.[share],
        tokenLoss,
      );
    }
  }
  return sums.map(({ predictions, nll, reference }) => {
    checkFinite(nll, reference);
    return { predictions, nll, ...sequences.count > 1 ? { reference } : {} };
  });
}

/**
 * Sums of one window of n tokens from logits that are known, [n - 1, vocabulary] each: of a model and of a reference.
 * @throws {HcinferError} "bundle": logits that are not numbers
 */
export function compareWindow(
  window: Int32Array,
  logits: Float32Array,
  reference: Float32Array,
  tokenLoss: TokenLoss = lossOfToken,
): WindowSums {
  const sums = noLosses();
  addLosses(sums, window.subarray(1), logits, reference, tokenLoss);
  checkFinite(sums.nll, sums.reference);
  return sums;
}

function noLosses() {
  return { predictions: 0, nll: 0, reference: { nll: 0, kl: 0, agreed: 0 } };
}

/** Adds the losses of `targets` to the sums, each by its row of the logits. */
function addLosses(
  sums: ReturnType<typeof noLosses>,
  targets: Int32Array,
  logits: Float32Array,
  reference: Float32Array | undefined,
  tokenLoss: TokenLoss,
): void {
  for (const [index, target] of targets.entries()) {
    const row = rowOf(logits, index, targets.length);
    const other = reference && rowOf(reference, index, targets.length);
    const { nll, kl } = tokenLoss(row, other, target);
    sums.predictions++;
    sums.nll += nll;
    if (other === undefined) continue;
    sums.reference.kl += kl;
    sums.reference.nll += tokenLoss(other, undefined, target).nll;
    if (argmax(row) === argmax(other)) sums.reference.agreed++;
  }
}

/** Row `index` of logits [rows, vocabulary]. */
function rowOf(logits: Float32Array, index: number, rows: number): Float32Array {
  const vocabulary = logits.length / rows;
  return logits.subarray(index * vocabulary, (index + 1) * vocabulary);
}

/** As many sequences on each executor, which all step alike. */
class Sequences implements Disposable {
  readonly #all: readonly { readonly executor: Executor; readonly sequences: readonly Sequence[] }[];
  /** Most tokens of a step of all executors. */
  readonly capacity: number;

  constructor(executors: readonly Executor[], batch: number) {
    this.#all = executors.map((executor) => ({
      executor,
      sequences: Array.from({ length: batch }, () => executor.sequence()),
    }));
    this.capacity = Math.min(...executors.map((executor) => executor.capacity));
  }

  /** Number of executors. */
  get count(): number {
    return this.#all.length;
  }

  /** Logits of every token of every run, executor by executor; `sequence` is an index. */
  async step(
    runs: readonly { readonly sequence: number; readonly position: number; readonly tokens: Int32Array }[],
    as: StepKind,
    signal: AbortSignal | undefined,
  ): Promise<(readonly Float32Array[])[]> {
    const logits = [];
    for (const { executor, sequences } of this.#all) {
      const own = runs.map((run) => (
        { ...run, sequence: sequences[run.sequence]!, as, logits: "all" } as const
      ));
      logits.push(await executor.stepAsync({ runs: own }, signal));
    }
    return logits;
  }

  [Symbol.dispose](): void {
    for (const { sequences } of this.#all) {
      for (const sequence of sequences) sequence[Symbol.dispose]();
    }
  }
}

function checkFinite(nll: number, { nll: referenceNll, kl }: ReferenceSums): void {
  if (Number.isFinite(nll) && Number.isFinite(referenceNll) && Number.isFinite(kl)) return;
  throw new HcinferError(
    "bundle",
    `the loss is ${nll}, the reference's ${referenceNll} and the divergence ${kl}: a model computes logits that are ` +
      "not numbers, or rules out what the text says",
  );
}

function check(executor: Executor, { tokens, reference, batch = 1 }: EvaluateOptions, window: number): void {
  const refuse = (message: string): never => {
    throw new HcinferError("input", message);
  };
  if (tokens.length < 2) refuse(`a text of ${tokens.length} tokens predicts nothing: at least 2 are needed`);
  if (!Number.isInteger(window) || window < 2) refuse(`a window has at least 2 tokens, found ${window}`);
  if (!Number.isInteger(batch) || batch < 1 || batch > MOST_RUNS) {
    refuse(`1 to ${MOST_RUNS} windows run in one step, found ${batch}`);
  }
  // A window's last token never enters the cache.
  const longest = Math.min(window, tokens.length) - 1;
  for (const { contextLength, name } of reference ? [executor, reference] : [executor]) {
    if (longest > contextLength) {
      refuse(`a window of ${window} tokens does not fit the context of ${contextLength} (${name})`);
    }
  }
  if (reference) checkVocabularies(executor, reference);
}

/** @throws {HcinferError} "input": two models whose logits cannot be compared */
export function checkVocabularies(executor: Executor, reference: Executor): void {
  const own = executor.model.vocabularySize, other = reference.model.vocabularySize;
  if (own === other) return;
  throw new HcinferError(
    "input",
    `the reference has ${other} tokens in its vocabulary, the model ${own}: they cannot be compared`,
  );
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
