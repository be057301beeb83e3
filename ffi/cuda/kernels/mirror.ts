/** Launches of mirror.cu. */
import type { LaunchRules } from "../launch.ts";

/** Blocks that saturate the bus, of threads that copy 16 bytes at a time. */
const MOST_BLOCKS = 64, THREADS = 256;

export const rules = {
  mirror: ({ rowBytes }, { n }) => {
    if (n === 0) return [];
    const blocks = Math.min(MOST_BLOCKS, Math.max(1, Math.ceil(n * rowBytes! / (16 * THREADS))));
    return [{ kernel: "mirror", module: "mirror", grid: [blocks, 1, 1], block: THREADS }];
  },
} satisfies Partial<LaunchRules>;
