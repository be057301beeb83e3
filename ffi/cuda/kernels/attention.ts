/** Launches of attention (attention.cu): one that walks over the context, or one split over it and one that merges. */
import { ATTENTION_CHUNK, ATTENTION_SCRATCH } from "../../../compiler/memory.ts";
import { ATTENTION_TILE } from "../../instructions.ts";
import type { LaunchRules } from "../launch.ts";
import { checkHeadDim } from "./heads.ts";

const THREADS = 128;
/** Query rows of a unit of work, at most; rows of which sums of values lie in shared memory at the same time. */
const UNIT_ROWS = 8, REDUCED = 4;
/** Units for each multiprocessor from which on the chip is full without a split: as many blocks as its registers hold. */
const UNITS_TO_FILL = 4;
/** Blocks of a grid in y. */
const MOST_CHUNKS = 65535;

export const rules = {
  attend: (integers, { n, tokens, tiles, context }, { multiprocessors }) => {
    const heads = integers["heads"]!, kvHeads = integers["kvHeads"]!, headDim = integers["headDim"]!;
    checkHeadDim(headDim);
    if (n === 0 || tiles === 0) return [];
    // Every tile has a token.
    const tileTokens = Math.min(ATTENTION_TILE, n - tiles + 1);
    const unitsOf = (tile: number) => tiles * kvHeads * Math.ceil(tile * heads / kvHeads / UNIT_ROWS);
    const units = unitsOf(tileTokens);
    // Rows of q and of sums, how much each sees, then weights or partial sums (a thread has 8 dimensions).
    const shared = 4 * (2 * UNIT_ROWS * headDim + UNIT_ROWS + REDUCED * THREADS * 8);
    const unit = { module: "attention", block: THREADS, shared };
    const chunks = Math.ceil(Math.min(context, integers["context"]!) / ATTENTION_CHUNK);
    const scratch = 4 * chunks * tokens * heads * (headDim + 2);
    const full = unitsOf(n / tiles) >= UNITS_TO_FILL * multiprocessors || scratch > ATTENTION_SCRATCH ||
      chunks > MOST_CHUNKS;
    if (full || chunks <= 1) return [{ ...unit, kernel: "attend_walk", grid: [units, 1, 1] }];
    const both = { chunks, scratch };
    return [
      { ...unit, ...both, kernel: "attend_split", grid: [units, chunks, 1] },
      {
        ...both,
        kernel: "attend_merge",
        module: "attention",
        grid: [tiles * heads, tileTokens, 1],
        block: THREADS,
      },
    ];
  },
} satisfies Partial<LaunchRules>;
