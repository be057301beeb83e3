/**
 * From logits to a token. The order of operations is the field's (transformers' warpers):
 *
 *   0. penalties on tokens that the text has already (penalties.ts)
 *   1. temperature: logits / temperature; 0 is greedy, the largest logit, ties by lower id, and nothing below applies
 *   2. top-k: the k largest, ties by lower id
 *   3. top-p: of those, in descending order, the fewest whose probabilities (among those k) reach p; at least one
 *   4. min-p: of those, the ones at least `minP` times as probable as the most probable
 *   5. a draw: u in [0, 1) from the generator, times the sum of the survivors' weights exp((logit - largest) / T);
 *      the token in whose share it falls, shares in order of id
 *
 * All in double precision with sums in a fixed order, so a seed gives the same tokens on every machine that computes
 * the same logits. Every draw takes exactly two outputs of the generator.
 */
import { HcinferError } from "../compiler/errors.ts";
import { argmax, tokenLoss } from "../ffi/engine.ts";
import { Penalties, type PenaltyOptions } from "./penalties.ts";

/** How tokens are chosen; the steps above in their order. */
export interface SamplerOptions extends PenaltyOptions {
  /** 0 (default): greedy. */
  readonly temperature?: number;
  /** 0 (default): all. */
  readonly topK?: number;
  /** 1 (default): all. */
  readonly topP?: number;
  /** 0 (default): all. */
  readonly minP?: number;
  /** An integer from 0 to 2^53 - 1; by default a random one. */
  readonly seed?: number;
}

/** Chooses tokens by its options, one after the other from one seed. */
export class Sampler {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly seed: number;
  readonly #uniform: () => number;
  readonly #penalties: Penalties;

  /** @throws {HcinferError} "usage": an option outside its range */
  constructor(options: SamplerOptions = {}) {
    this.temperature = within("temperature", options.temperature ?? 0, 0, 1000);
    this.topK = whole("top-k", options.topK ?? 0);
    this.topP = within("top-p", options.topP ?? 1, Number.MIN_VALUE, 1);
    this.minP = within("min-p", options.minP ?? 0, 0, 1);
    this.seed = whole("seed", options.seed ?? Math.floor(Math.random() * 2 ** 32));
    this.#uniform = sfc32(this.seed);
    this.#penalties = new Penalties({
      repetitionPenalty: within("repetition penalty", options.repetitionPenalty ?? 1, 0.01, 100),
      frequencyPenalty: within("frequency penalty", options.frequencyPenalty ?? 0, -2, 2),
      presencePenalty: within("presence penalty", options.presencePenalty ?? 0, -2, 2),
    });
  }

  /** Begins a new answer after the tokens of `prompt`, for the penalties; draws go on. */
  begin(prompt: Iterable<number>): void {
    this.#penalties.begin(prompt);
  }

  /**
   * The next token, given logits [vocabulary].
   * @throws {HcinferError} "bundle": a logit is NaN or +Infinity, or all are -Infinity
   */
  next(logits: Float32Array): number {
    const token = this.#choose(this.#penalties.apply(logits));
    this.#penalties.add(token);
    return token;
  }

  #choose(logits: Float32Array): number {
    const best = largest(logits);
    if (this.temperature === 0) return best;
    const most = logits[best]!;
    const { least, ties } = this.#cut(logits, most);
    // 0 for those that do not survive.
    const weights = new Float64Array(logits.length);
    let total = 0;
    let left = ties;
    for (let id = 0; id < logits.length; id++) {
      const logit = logits[id]!;
      if (logit < least || (logit === least && left-- <= 0)) continue;
      const weight = this.#weight(logit, most);
      if (weight < this.minP) continue;
      weights[id] = weight;
      total += weight;
    }
    let share = this.#uniform() * total;
    for (let id = 0; id < weights.length; id++) {
      share -= weights[id]!;
      if (share < 0) return id;
    }
    // Rounding of the sums can leave a last bit over; the most probable token is never wrong.
    return best;
  }

  #weight(logit: number, most: number): number {
    return Math.exp((logit - most) / this.temperature);
  }

  /** What top-k and top-p keep: logits above `least`, and the first `ties` of those equal to it. */
  #cut(logits: Float32Array, most: number): { readonly least: number; readonly ties: number } {
    const count = this.topK === 0 ? logits.length : Math.min(this.topK, logits.length);
    const all = count === logits.length;
    if (all && this.topP === 1) return { least: -Infinity, ties: Infinity };
    let total = 0;
    if (all) { for (const logit of logits) total += this.#weight(logit, most); }
    const sorted = this.#descending(logits, most, all ? this.topP * total : Infinity, count);
    let kept = Math.min(count, sorted.length);
    if (this.topP < 1) {
      if (!all) { for (let i = 0; i < kept; i++) total += this.#weight(sorted[i]!, most); }
      let reached = 0;
      let enough = 0;
      while (enough < kept && (enough === 0 || reached < this.topP * total)) {
        reached += this.#weight(sorted[enough++]!, most);
      }
      kept = enough;
    }
    const least = sorted[kept - 1]!;
    return { least, ties: kept - sorted.indexOf(least) };
  }

  /**
   * The largest logits, descending: at least `count` of them, or of at least the weight `mass`; most of a large
   * vocabulary need not be sorted. Takes those within a distance of the largest, and doubles it until they are
   * enough.
   */
  #descending(logits: Float32Array, most: number, mass: number, count: number): Float32Array {
    for (let distance = 4 * Math.max(this.temperature, 0.01);; distance *= 2) {
      const near = logits.filter((logit) => logit >= most - distance);
      let reached = 0;
      if (mass < Infinity) { for (const logit of near) reached += this.#weight(logit, most); }
      if (near.length >= count || reached > mass * (1 + 1e-12) || distance === Infinity) {
        return near.sort().reverse();
      }
    }
  }
}

/**
 * Index of the largest logit, ties by lower index. Takes 15 to 20 us for 49,152 logits; a loop here takes 40.
 * @throws {HcinferError} "bundle"
 */
export function largest(logits: Float32Array): number {
  const best = logits.length > 0 ? argmax(logits) : 0;
  // The sum of exponentials in a loss is a number only when every logit is one, and not all are -Infinity.
  if (logits.length === 0 || Number.isNaN(tokenLoss(logits, best).nll)) return unusable(logits);
  return best;
}

function unusable(logits: Float32Array): never {
  const bad = logits.findIndex((logit) => !(logit < Infinity));
  const found = bad >= 0 ? `${logits[bad]} for token ${bad}` : "-Infinity for every token";
  throw new HcinferError(
    "bundle",
    `the model computed a logit of ${found}: a weight of it is no number, or a value outgrew its format. Compile it ` +
      "again from a checkpoint whose weights are finite; if that does not help, report it with the prompt",
  );
}

function within(name: string, value: number, least: number, most: number): number {
  if (value >= least && value <= most) return value;
  const range = least === Number.MIN_VALUE ? `above 0, at most ${most}` : `from ${least} to ${most}`;
  throw new HcinferError("usage", `${name} must be ${range}, found ${value}`);
}

function whole(name: string, value: number): number {
  if (Number.isSafeInteger(value) && value >= 0) return value;
  throw new HcinferError("usage", `${name} must be a whole number of at least 0, found ${value}`);
}

/**
 * Small Fast Counter, 32 bits (Chris Doty-Humphrey, PractRand), state (low word of the seed, high word, 0, 1) after
 * 12 outputs, as its author seeds it. Returns doubles in [0, 1) of 53 bits, the first output giving the high 27.
 */
export function sfc32(seed: number): () => number {
  let a = seed | 0, b = Math.floor(seed / 2 ** 32) | 0, c = 0, counter = 1;
  const next = () => {
    const sum = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21 | c >>> 11) + sum) | 0;
    return sum >>> 0;
  };
  for (let i = 0; i < 12; i++) next();
  return () => ((next() >>> 5) * 2 ** 26 + (next() >>> 6)) * 2 ** -53;
}
