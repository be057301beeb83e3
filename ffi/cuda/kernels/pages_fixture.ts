/** For tests of the kernels that know the pages of the cache: where keys and values stand in them (pages.h). */
import { PAGE_POSITIONS } from "../../../compiler/memory.ts";

export interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** Of f16 elements: where a dimension of the key at a slot of a page stands in the cache. */
export function keyAt({ kvHeads, headDim }: HeadShape, page: number, head: number, slot: number, d: number) {
  const block = d - d % 8, width = Math.min(8, headDim - block);
  return (page * kvHeads + head) * PAGE_POSITIONS * headDim + block * PAGE_POSITIONS + slot * width + d % 8;
}

/** The same of a value. */
export function valueAt(
  { kvHeads, headDim }: HeadShape,
  page: number,
  head: number,
  slot: number,
  d: number,
) {
  return ((page * kvHeads + head) * PAGE_POSITIONS + slot) * headDim + d;
}

export function cacheOf({ kvHeads, headDim }: HeadShape, pageCount: number, fill: number) {
  return new Float16Array(pageCount * kvHeads * PAGE_POSITIONS * headDim).fill(fill);
}

/** As an operand: the same memory. */
export const bitsOf = (cache: Float16Array<ArrayBuffer>) => new Uint16Array(cache.buffer);

/** Fails where a value is further from what is expected than `bound`, or one of them alone is NaN. */
export function near(found: ArrayLike<number>, expected: ArrayLike<number>, bound: number, what: string) {
  for (let i = 0; i < expected.length; i++) {
    const a = found[i]!, b = expected[i]!;
    if (!Object.is(a, b) && !(Math.abs(a - b) <= bound * Math.max(1, Math.abs(b)))) {
      throw new Error(`${what}: element ${i} is ${a}, expected ${b} within ${bound}`);
    }
  }
}
