/** The 64-bit checksum of files of weights, at the speed of memory: it finds edits and accidents, and is no signature. */
import { mapFile } from "../../ffi/mapping.ts";
import { checksum } from "../../ffi/packing.ts";

/** Checksum of bytes, 16 hexadecimal digits; the same for every number of threads. */
export function bytesChecksum(bytes: Uint8Array, threads: number): string {
  return checksum(bytes, threads).toString(16).padStart(16, "0");
}

export function fileChecksum(path: string, threads: number): string {
  using mapping = mapFile(path);
  return bytesChecksum(mapping.bytes, threads);
}
