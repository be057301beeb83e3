/** Launches of mirror.cu. */
import type { LaunchRules } from "../launch.ts";
import type { KernelInstruction } from "../parameters.ts";

/** Blocks that saturate the bus, of threads that copy 16 bytes at a time. */
const MOST_BLOCKS = 64, THREADS = 256;

/** Copies nothing: what only waits or tells. */
export const HANDSHAKE: KernelInstruction = {
  op: "mirror",
  operands: {},
  integers: { rowBytes: 0 },
  reals: {},
};

export const rules = {
  mirror: ({ rowBytes }, { n }) => {
    if (n === 0 && rowBytes! > 0) return [];
    const blocks = Math.min(MOST_BLOCKS, Math.max(1, Math.ceil(n * rowBytes! / (16 * THREADS))));
    return [{ kernel: "mirror", module: "mirror", grid: [blocks, 1, 1], block: THREADS }];
  },
} satisfies Partial<LaunchRules>;
