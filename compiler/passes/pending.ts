/**
 * What ops leave to whoever reads their output, and who does it: the table that `lower` follows. A merge leaves deltas to
 * add, a norm and a rotation of heads leave themselves.
 */
import type { HeadNorm, NormParams, Op } from "../ir/ops.ts";

/** Work that a value's readers still have to do, in this order. */
export const WORK = ["deltas", "norm", "rope"] as const;
export type Work = typeof WORK[number];

export const DELTAS: readonly Work[] = ["deltas"];
const HEADS: readonly Work[] = WORK;
export const NOTHING: readonly Work[] = [];

/** What each op absorbs at each input. Inputs beyond the list, and ops without a row, absorb nothing. */
export const ABSORBS: { readonly [P in Op]?: readonly (readonly Work[])[] } = {
  rms_norm: [DELTAS],
  add_rms_norm: [DELTAS, DELTAS],
  rope: [DELTAS],
  silu: [DELTAS],
  add: [DELTAS, DELTAS],
  mul: [DELTAS, DELTAS],
  silu_mul: [DELTAS, DELTAS],
  copy: [DELTAS],
  append: [HEADS, HEADS, DELTAS],
};

/** Where a logical value is: a value of the lowered graph, and what is pending on it. */
export interface Pending {
  readonly base: string;
  readonly deltas: readonly string[];
  /** Columns of a head, where the value is seen as heads. */
  readonly headDim?: number;
  readonly norm?: NormParams;
  readonly rope?: string;
}

/** A value on which nothing is pending. */
export function plain(base: string, headDim?: number): Pending {
  return headDim === undefined ? { base, deltas: [] } : { base, deltas: [], headDim };
}

/** The norm of heads as an instruction has it. */
export function headNorm({ path, epsilon }: NormParams): HeadNorm {
  return { path, epsilon };
}
