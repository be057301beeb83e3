/**
 * Penalties on tokens that a text has already, put on logits before anything else is done with them:
 *
 *   repetition   a logit l of a token of the prompt or the answer becomes l / p where l > 0 and l * p elsewhere
 *                (CTRL, arXiv 1909.05858, section 4.1; for negative logits as RepetitionPenaltyLogitsProcessor of transformers)
 *   frequency    minus p for every time that the answer has the token
 *   presence     minus p when the answer has it at all
 *                (OpenAI's API: mu[j] - c[j] alpha_frequency - [c[j] > 0] alpha_presence, c counting sampled tokens)
 */

/** Each is off by default. */
export interface PenaltyOptions {
  /** Above 1 discourages; 1 (default): none. From 0.01 to 100. */
  readonly repetitionPenalty?: number;
  /** Above 0 discourages; 0 (default): none. From -2 to 2. */
  readonly frequencyPenalty?: number;
  /** Above 0 discourages; 0 (default): none. From -2 to 2. */
  readonly presencePenalty?: number;
}

/** The tokens of one text, and what they cost. */
export class Penalties {
  readonly #options: Required<PenaltyOptions>;
  /** Tokens of prompt and answer. */
  #seen = new Set<number>();
  /** How often the answer has each of its tokens. */
  #counts = new Map<number, number>();

  constructor(options: Required<PenaltyOptions>) {
    this.#options = options;
  }

  get #active(): boolean {
    const { repetitionPenalty, frequencyPenalty, presencePenalty } = this.#options;
    return repetitionPenalty !== 1 || frequencyPenalty !== 0 || presencePenalty !== 0;
  }

  /** A new answer, after these tokens. */
  begin(prompt: Iterable<number>): void {
    this.#seen = new Set(this.#active ? prompt : []);
    this.#counts = new Map();
  }

  /** The answer goes on with `token`. */
  add(token: number): void {
    if (!this.#active) return;
    this.#seen.add(token);
    this.#counts.set(token, (this.#counts.get(token) ?? 0) + 1);
  }

  /** Logits [vocabulary] less the penalties: a copy, or `logits` itself where there are none. */
  apply(logits: Float32Array): Float32Array {
    if (this.#seen.size === 0) return logits;
    const { repetitionPenalty, frequencyPenalty, presencePenalty } = this.#options;
    const penalised = logits.slice();
    for (const token of this.#seen) {
      const logit = logits[token];
      if (logit === undefined) continue;
      penalised[token] = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty;
    }
    for (const [token, count] of this.#counts) {
      penalised[token]! -= count * frequencyPenalty + presencePenalty;
    }
    return penalised;
  }
}
