/** What the reference executor computes with: every weight of a plan in doubles, decoded once and kept. */

/** A window's residual E and the norms that choose its channels. */
export interface ResidualNumbers {
  /** [inputs, outputs]: row j is what input channel j adds per unit of x_j. */
  readonly rows: Float64Array;
  /** [inputs] */
  readonly norm: Float64Array;
}

/** E^T ~= A B in order of importance: `a` is A transposed, [maxRank, inputs]; `b` is [maxRank, outputs]. */
export interface FactorNumbers {
  readonly a: Float64Array;
  readonly b: Float64Array;
}

export interface Numbers {
  /** The checkpoint's matrix `${path}.weight`, [rows, inputs], as the format has it. */
  matrix(path: string): Float64Array;
  /** The vector `${path}.weight`. */
  vector(path: string): Float64Array;
  residual(window: string): ResidualNumbers;
  factors(window: string): FactorNumbers;
}
