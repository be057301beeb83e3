/** Launches of low_rank.cu, whose constants these are. */
import type { LaunchRules } from "../launch.ts";
import { inPieces } from "./elementwise.ts";

const DOWN_TOKENS = 4, DOWN_COMPONENTS = 4, DOWN_WARPS = 8, UP_TOKENS = 8;

export const rules = {
  lowRankDown: ({ rank }, { n }) => {
    if (n === 0) return [];
    const blocks = Math.ceil(n / DOWN_TOKENS) * Math.ceil(rank! / (DOWN_COMPONENTS * DOWN_WARPS));
    return [{ kernel: "low_rank_down", module: "low_rank", grid: [blocks, 1, 1], block: 32 * DOWN_WARPS }];
  },
  lowRankUp: ({ outputs }, { n }) => inPieces("low_rank", "low_rank_up", Math.ceil(n / UP_TOKENS), outputs!),
} satisfies Partial<LaunchRules>;
