/**
 * Launches of `linear`. One token: linear_vector.h. With tensor cores, some: linear_few.h; many: linear_matrix.h. With a
 * residual to add: linear_residual.h first, then a product with the matrix that it leaves in scratch. All of them give the
 * same bits for a token, so what is chosen is only a question of speed.
 */
import { FORMAT_KINDS } from "../../../compiler/weights/format.ts";
import type { DeviceShape, Launch, LaunchRules } from "../launch.ts";

const TILE_ROWS = 16;
/** As in linear_order.h. */
const SEGMENT_STEP = 128, MOST_SEGMENTS = 32;
/** Threads for each segment of linear_vector.h: of 4 rows each. */
const SEGMENT_THREADS = 4;
/** Tokens of a block of linear_vector.h, where there are several. */
const VECTOR_TOKENS = 4;
/** Tokens and rows of a block of linear_few.h; as many warps as give a multiprocessor this many, within bounds. */
const FEW_TOKENS = 8, FEW_ROWS = 32, FEW_WARPS = 24, LEAST_WARPS = 4, MOST_WARPS = 16;
/** More tokens are many: fewer do not make enough blocks of linear_matrix.h to keep the memory busy. */
const MOST_FEW = 64;
/** mma of bytes, m16n8k32. */
const TENSOR_CORES = 80;
/** Of linear_matrix.h: rows and threads for each pair of warps, and the most pairs of a block; tokens of a block. */
const PAIR_ROWS = 32, PAIR_THREADS = 64, MOST_PAIRS = 4, BLOCK_TOKENS = 64;
const COMBINE_WARPS = 8;
/** The format of a matrix with its residual added, and the scales before the codes of its tiles (Combined of format.h). */
const COMBINED = "combined", COMBINED_HEADER = 64;

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

function few(
  format: string,
  rows: number,
  inputs: number,
  n: number,
  { multiprocessors }: DeviceShape,
): Launch {
  const segments = segmentsOf(inputs), blocks = Math.ceil(rows / FEW_ROWS) * Math.ceil(n / FEW_TOKENS);
  const wanted = Math.max(LEAST_WARPS, Math.ceil(FEW_WARPS * multiprocessors / blocks));
  return {
    kernel: `linear_${format}_few`,
    module: "linear",
    grid: [blocks, 1, 1],
    block: 32 * Math.min(segments, wanted, MOST_WARPS),
    shared: segments * FEW_TOKENS * FEW_ROWS * 4,
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
    const product = (format: string): Launch => {
      if (device.capability < TENSOR_CORES || format === "bf16" || n === 1) {
        return vector(format, rows, inputs, n, n === 1 && format !== COMBINED ? 1 : VECTOR_TOKENS);
      }
      return n <= MOST_FEW ? few(format, rows, inputs, n, device) : matrix(format, rows, n, device);
    };
    if (residualWidth === 0) return [product(format)];
    const combine: Launch = {
      kernel: `linear_${format}_combine`,
      module: "linear",
      grid: [Math.ceil(tilesOf(rows) * groups / COMBINE_WARPS), 1, 1],
      block: 32 * COMBINE_WARPS,
      scratch: tilesOf(rows) * groups * (COMBINED_HEADER + TILE_ROWS * group),
    };
    return [combine, product(COMBINED)];
  },
} satisfies Partial<LaunchRules>;
