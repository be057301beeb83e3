/** What the machine's memory gives, measured natively (simd/measure.cpp). */
import { HcinferError } from "../compiler/errors.ts";
import { library } from "./open.ts";

/** Far above any cache, small enough for any machine. */
const BYTES = 512e6;

/** Bytes per second that `threads` threads read, or copy (a byte copied counts once), together; the best of `rounds`. */
export function memoryBandwidth(kind: "read" | "copy", threads: number, rounds = 5): number {
  const found = library().hc_measure_bandwidth(kind === "copy" ? 1 : 0, BigInt(BYTES), threads, rounds);
  if (found === 0) {
    throw new HcinferError("environment", "not enough memory to measure its bandwidth: 1 GB is needed");
  }
  return found;
}
