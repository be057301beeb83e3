/**
 * Launches of `linear`. Few tokens: linear_vector.h, as many of them a block as there are up to 8; many: linear_matrix.h on
 * tensor cores; with a residual to add: linear_residual.h, then a product with the matrix that it leaves in scratch. All of
 * them give the same bits for a token, so what is chosen is only a question of speed.
 */
import { FORMAT_KINDS } from "../../../compiler/weights/format.ts";
import type { DeviceShape, Launch, LaunchRules } from "../launch.ts";

const TILE_ROWS = 16;
/** As in linear_order.h. */
const SEGMENT_STEP = 128, MOST_SEGMENTS = 64;
/** Threads for each segment of linear_vector.h: of 4 rows each. */
const SEGMENT_THREADS = 4;
/** Tokens of a block of linear_vector.h. */
const FEW_TOKENS = [1, 2, 4, 8] as const;
/** From here on tensor cores win: below, blocks of 8 tokens keep the memory busier than the few blocks of a matrix product. */
const MANY_TOKENS = 33;
/** mma of bytes, m16n8k32. */
const TENSOR_CORES = 80;
/** Of linear_matrix.h: rows and threads for each pair of warps, and the most pairs of a block; tokens of a block. */
const PAIR_ROWS = 32, PAIR_THREADS = 64, MOST_PAIRS = 4, BLOCK_TOKENS = 64;
const COMBINE_WARPS = 8;
/** f32 scales before the codes of a combined tile (Combined of format.h). */
const COMBINED_HEADER = 64;

const tilesOf = (rows: number) => Math.ceil(rows / TILE_ROWS);

function segmentsOf(inputs: number): number {
  const steps = Math.ceil(inputs / SEGMENT_STEP);
  return Math.ceil(steps / Math.ceil(steps / MOST_SEGMENTS));
}

function vector(format: string, rows: number, inputs: number, n: number, tokens: number): Launch {
  const segments = segmentsOf(inputs);
  return {
    kernel: `linear_${format}_${tokens}`,
    module: "linear",
    grid: [tilesOf(rows) * Math.ceil(n / tokens), 1, 1],
    block: Math.ceil(segments * SEGMENT_THREADS / 32) * 32,
    shared: segments * tokens * TILE_ROWS * 4,
  };
}

/** Blocks as large as leave no multiprocessor idle. */
function matrix(format: string, rows: number, n: number, { multiprocessors }: DeviceShape): Launch {
  const tokenBlocks = Math.ceil(n / BLOCK_TOKENS);
  const rowBlocks = (pairs: number) => Math.ceil(rows / (PAIR_ROWS * pairs));
  let pairs = MOST_PAIRS;
  while (pairs > 1 && rowBlocks(pairs) * tokenBlocks < 2 * multiprocessors) pairs /= 2;
  return {
    kernel: `linear_${format}_matrix`,
    module: "linear",
    grid: [rowBlocks(pairs), tokenBlocks, 1],
    block: PAIR_THREADS * pairs,
  };
}

export const rules = {
  linear: (integers, { n }, device) => {
    const { rows = 0, inputs = 0, group = 0, groups = 0, residualWidth = 0 } = integers;
    const format = FORMAT_KINDS[integers.format ?? 0] ?? "bf16";
    if (n === 0) return [];
    const tensorCores = device.capability >= TENSOR_CORES;
    if (residualWidth > 0) {
      const combine = {
        kernel: `linear_${format}_combine`,
        module: "linear",
        grid: [Math.ceil(tilesOf(rows) * groups / COMBINE_WARPS), 1, 1],
        block: 32 * COMBINE_WARPS,
        scratch: tilesOf(rows) * groups * (COMBINED_HEADER + TILE_ROWS * group),
      } as const;
      return [
        combine,
        tensorCores ? matrix("combined", rows, n, device) : vector("combined", rows, inputs, n, 8),
      ];
    }
    if (tensorCores && format !== "bf16" && n >= MANY_TOKENS) return [matrix(format, rows, n, device)];
    return [vector(format, rows, inputs, n, FEW_TOKENS.find((tokens) => tokens >= n) ?? 8)];
  },
} satisfies Partial<LaunchRules>;
