/** Launches of sampling.cu, and what they are given: the largest logits of each row. */
import type { Launch } from "../launch.ts";
import type { DevicePointer } from "../symbols.ts";

/** Logits of a block (sampling.cu: THREADS, SLICE), and the blocks whose lists one block merges, one a thread. */
const THREADS = 256, SLICE = 4096, MOST_SLICES = THREADS;
export const MOST_TOP_K = 64;

/**
 * The `k` largest of each of `n` rows of logits.
 * @throws {RangeError} for a k that is not 1 to 64 and at most `vocabulary`, or a vocabulary beyond 2^20
 */
export function topKLaunches(vocabulary: number, k: number, n: number): readonly Launch[] {
  const slices = Math.ceil(vocabulary / SLICE);
  if (!Number.isSafeInteger(k) || k < 1 || k > Math.min(MOST_TOP_K, vocabulary)) {
    throw new RangeError(
      `the ${k} largest of ${vocabulary} logits: from 1 to ${MOST_TOP_K} can be asked for`,
    );
  }
  if (slices > MOST_SLICES) {
    throw new RangeError(`${vocabulary} logits: a GPU chooses among ${SLICE * MOST_SLICES} at most`);
  }
  if (n === 0) return [];
  const common = { module: "sampling", block: THREADS, chunks: slices, scratch: 8 * n * slices * k } as const;
  return [
    { ...common, kernel: "top_k_of_slice", grid: [n * slices, 1, 1] },
    { ...common, kernel: "top_k_of_row", grid: [n, 1, 1] },
  ];
}

/** The structure TopK of sampling.h. */
export interface TopK {
  /** f32 [n, vocabulary] */
  readonly logits: DevicePointer;
  /** i32 [n, k] */
  readonly indices: DevicePointer;
  /** f32 [n, k] */
  readonly values: DevicePointer;
  readonly vocabulary: number;
  readonly k: number;
}

export function packTopK({ logits, indices, values, vocabulary, k }: TopK): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(32));
  [logits, indices, values].forEach((address, i) => view.setBigUint64(8 * i, address, true));
  [vocabulary, k].forEach((value, i) => view.setInt32(24 + 4 * i, value, true));
  return new Uint8Array(view.buffer);
}
