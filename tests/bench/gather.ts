/**
 * Rows chosen at random from a file many times larger than any cache, mapped as a bundle is, beside what the memory gives when
 * it is read in order.
 */
import { closeSync, existsSync, mkdirSync, openSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { median } from "../../cli/bench.ts";
import { mapFile } from "../../ffi/mapping.ts";
import { memoryBandwidth } from "../../ffi/measure.ts";
import { Gather } from "../../runtime/gather.ts";
import { cacheFolder } from "./shape.ts";
import { spread } from "./spread.ts";

const BYTES = 2 ** 29;
const ROW_BYTES = [512, 1024, 2048, 4096] as const;

/** A row a size: bytes of a row, GB/s of codes, and their share of what a stream reads. */
export function gatherRows(threads: number, repeats: number): string[][] {
  using file = mapFile(randomFile());
  const found = ROW_BYTES.map((): number[] => []), streams: number[] = [];
  for (let repeat = 0; repeat <= repeats; repeat++) {
    const stream = memoryBandwidth("read", threads, 2);
    if (repeat > 0) streams.push(stream);
    ROW_BYTES.forEach((rowBytes, i) => {
      using gather = new Gather(file, rowBytes, threads, false);
      gather.measure();
      const bytes = gather.measure();
      if (repeat > 0) found[i]!.push(bytes / 1e9);
    });
  }
  const stream = median(streams) / 1e9;
  return ROW_BYTES.map((rowBytes, i) => [
    `${rowBytes}`,
    spread(found[i]!),
    `${(100 * median(found[i]!) / stream).toFixed(0)} % of ${stream.toFixed(1)}`,
  ]);
}

function randomFile(): string {
  const path = join(cacheFolder(), "gather");
  if (existsSync(path) && statSync(path).size === BYTES) return path;
  mkdirSync(cacheFolder(), { recursive: true });
  const file = openSync(path, "w");
  const part = new Uint8Array(2 ** 25);
  for (let at = 0; at < part.length; at += 2 ** 16) crypto.getRandomValues(part.subarray(at, at + 2 ** 16));
  for (let at = 0; at < BYTES; at += part.length) writeSync(file, part);
  closeSync(file);
  return path;
}
