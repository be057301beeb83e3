/**
 * From logits to a token. The order of operations is the field's (transformers' warpers):
 *
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

export interface SamplerOptions {
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

export class Sampler {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly seed: number;
  readonly #uniform: () => number;

  /** @throws {HcinferError} "usage": an option outside its range */
  constructor(options: SamplerOptions = {}) {
    this.temperature = within("temperature", options.temperature ?? 0, 0, 1000);
    this.topK = whole("top-k", options.topK ?? 0);
    this.topP = within("top-p", options.topP ?? 1, Number.MIN_VALUE, 1);
    this.minP = within("min-p", options.minP ?? 0, 0, 1);
    this.seed = whole("seed", options.seed ?? Math.floor(Math.random() * 2 ** 32));
    this.#uniform = sfc32(this.seed);
  }

  /**
   * The next token, given logits [vocabulary].
   * @throws {HcinferError} "bundle": a logit is NaN or +Infinity, or all are -Infinity
   */
  next(logits: Float32Array): number {
    const best = largest(logits);
    if (this.temperature === 0) return best;
    const most = logits[best]!;
    const weight = (id: number) => Math.exp((logits[id]! - most) / this.temperature);
    const survivors = this.#survivors(logits, most, weight);
    let total = 0;
    for (const id of survivors) total += weight(id);
    let left = this.#uniform() * total;
    for (const id of survivors) {
      left -= weight(id);
      if (left < 0) return id;
    }
    // Rounding of the sums can leave a last bit over; the most probable token is never wrong.
    return best;
  }

  /** Ids that survive steps 2 to 4, ascending. */
  #survivors(logits: Float32Array, most: number, weight: (id: number) => number): Iterable<number> {
    const count = this.topK === 0 ? logits.length : Math.min(this.topK, logits.length);
    if (count === logits.length && this.topP === 1) {
      return this.minP === 0 ? logits.keys() : [...logits.keys()].filter((id) => weight(id) >= this.minP);
    }
    const sorted = this.#descending(logits, most, weight, count);
    let end = Math.min(count, sorted.length);
    if (this.topP < 1) {
      const enough = this.topP * this.#total(logits, weight, sorted, count);
      let reached = 0;
      let kept = 0;
      while (kept < end && (kept === 0 || reached < enough)) reached += weight(sorted[kept++]!);
      end = kept;
    }
    while (end > 1 && weight(sorted[end - 1]!) < this.minP) end--;
    return sorted.subarray(0, end).sort();
  }

  /** The mass that top-p is a share of: the top k, or everything. */
  #total(logits: Float32Array, weight: (id: number) => number, sorted: Int32Array, count: number): number {
    let total = 0;
    if (count < logits.length) { for (const id of sorted.subarray(0, count)) total += weight(id); }
    else for (let id = 0; id < logits.length; id++) total += weight(id);
    return total;
  }

  /**
   * Ids by descending logit, ties by lower id; not all of a large vocabulary but at least as many as top-k and top-p
   * need. Takes those within a distance of the largest and doubles the distance until they are enough.
   */
  #descending(
    logits: Float32Array,
    most: number,
    weight: (id: number) => number,
    count: number,
  ): Int32Array {
    const all = count === logits.length;
    const enough = all ? this.topP * this.#total(logits, weight, new Int32Array(0), count) : 0;
    for (let distance = 8 * Math.max(this.temperature, 0.01);; distance *= 2) {
      const near: number[] = [];
      let mass = 0;
      for (let id = 0; id < logits.length; id++) {
        if (logits[id]! < most - distance) continue;
        near.push(id);
        mass += weight(id);
      }
      const done = all ? mass >= enough * (1 + 1e-12) : near.length >= count;
      if (done || near.length === logits.length || distance === Infinity) {
        return Int32Array.from(near).sort((a, b) => logits[b]! - logits[a]! || a - b);
      }
    }
  }
}

/** Index of the largest logit, ties by lower index. @throws {HcinferError} "bundle" */
export function largest(logits: Float32Array): number {
  let best = 0;
  let most = -Infinity;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id]!;
    // One comparison for the usual case; NaN fails it too.
    if (logit <= most) continue;
    if (!(logit < Infinity)) return unusable(`${logit} for token ${id}`);
    most = logit;
    best = id;
  }
  if (most === -Infinity) return unusable("-Infinity for every token");
  return best;
}

function unusable(what: string): never {
  throw new HcinferError(
    "bundle",
    `the model computed a logit of ${what}: its weights do not hold numbers that it can run with. ` +
      "Compile it again from a sound checkpoint; if that does not help, report it",
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
function sfc32(seed: number): () => number {
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
