/** Launches of elementwise.cu. */
import type { Launch, LaunchRules } from "../launch.ts";

/** Elements and threads of a block, where rows are cut into pieces (elementwise.h); whole groups of any size. */
const PIECE = 512, PIECE_THREADS = PIECE / 4;

/** One block for each piece of each of `rows` rows. */
export function inPieces(module: string, kernel: string, rows: number, width: number): readonly Launch[] {
  if (rows === 0) return [];
  return [{ kernel, module, grid: [rows * Math.ceil(width / PIECE), 1, 1], block: PIECE_THREADS }];
}

export const rules = {
  quantize: ({ width }, { n }) => inPieces("elementwise", "quantize", n, width!),
  siluMul: ({ width }, { n }) => inPieces("elementwise", "silu_mul", n, width!),
  elementwise: ({ width }, { n }) => inPieces("elementwise", "elementwise", n, width!),
} satisfies Partial<LaunchRules>;
