/** Launches of the kernels that bring heads into the cache (heads.cu). */
import { HcinferError } from "../../../compiler/errors.ts";
import type { Launch, LaunchRules } from "../launch.ts";

/** Widest head that the kernels hold in registers (pages.h). */
const MOST_HEAD_DIM = 256;
/** Heads of a block: a warp each. */
const HEADS = 4;

/** Throws HcinferError where a head is wider than the kernels take. */
export function checkHeadDim(headDim: number): void {
  if (headDim <= MOST_HEAD_DIM) return;
  throw new HcinferError(
    "usage",
    `heads of ${headDim} dimensions: the GPU's kernels take at most ${MOST_HEAD_DIM}; run with --device cpu`,
  );
}

function overHeads(kernel: string, heads: number, n: number, headDim: number): Launch[] {
  checkHeadDim(headDim);
  if (n === 0) return [];
  return [{ kernel, module: "heads", grid: [Math.ceil(n * heads / HEADS), 1, 1], block: 32 * HEADS }];
}

export const rules = {
  rope: (integers, { n }) => overHeads("rope", integers["heads"]!, n, integers["headDim"]!),
  append: (integers, { n }) =>
    overHeads("append", integers["heads"]! + 2 * integers["kvHeads"]!, n, integers["headDim"]!),
} satisfies Partial<LaunchRules>;
