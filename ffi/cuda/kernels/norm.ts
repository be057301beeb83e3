/** Launches of norm.cu. */
import type { LaunchRules } from "../launch.ts";

/** Of a block (norm.cu: MOST_THREADS). They, and so the order of a row's sum, follow from its width alone. */
const MOST_THREADS = 512;

export const rules = {
  norm: ({ width, heads }, { n }) => {
    if (n === 0) return [];
    const turns = Math.ceil(width! / (4 * MOST_THREADS));
    const block = 32 * Math.ceil(width! / (4 * 32 * turns));
    return [{ kernel: "rms_norm", module: "norm", grid: [n * heads!, 1, 1], block }];
  },
} satisfies Partial<LaunchRules>;
