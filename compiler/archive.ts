/**
 * Reading a zip archive that somebody else wrote. What an archive says of its own sizes is a claim: 200 kB can unfold to
 * gigabytes. So every part has a limit, compared with the claim before and with the bytes while they unfold.
 */
import { Unzip, UnzipInflate, unzipSync } from "fflate";

/** A deflated byte unfolds to 1032 at most, so a chunk to 17 MB. */
const CHUNK_BYTES = 2 ** 14;

/**
 * The parts of `archive` that `mostBytes` names, decompressed; others are not looked at. A part that is not there is
 * not in the result. Throws Error when the archive is damaged, has a part twice, or one larger than its limit.
 */
export function unzipParts<Name extends string>(
  archive: Uint8Array,
  mostBytes: Readonly<Record<Name, number>>,
): Partial<Record<Name, Uint8Array<ArrayBuffer>>> {
  const isPart = (name: string): name is Name => Object.hasOwn(mostBytes, name);
  const limit = (name: Name, bytes: number): void => {
    if (bytes > mostBytes[name]) throw new Error(`${name} unfolds to more than ${mostBytes[name]} bytes`);
  };
  const announced = new Set<string>();
  // The directory at the end: it shows that the archive is whole, and decompresses nothing.
  unzipSync(archive, {
    filter: ({ name, originalSize }) => {
      if (!isPart(name)) return false;
      if (announced.has(name)) throw new Error(`${name} is in it twice`);
      announced.add(name);
      limit(name, originalSize);
      return false;
    },
  });

  const parts: Partial<Record<Name, Uint8Array<ArrayBuffer>>> = {};
  const reader = new Unzip((part) => {
    const { name } = part;
    if (!isPart(name) || !announced.has(name)) return;
    if (parts[name] !== undefined) throw new Error(`${name} is in it twice`);
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    part.ondata = (error, chunk, final) => {
      if (error) throw error;
      limit(name, bytes += chunk.length);
      chunks.push(chunk);
      if (final) parts[name] = joined(chunks, bytes);
    };
    part.start();
  });
  reader.register(UnzipInflate);
  for (let at = 0; at < archive.length; at += CHUNK_BYTES) {
    reader.push(archive.subarray(at, at + CHUNK_BYTES), at + CHUNK_BYTES >= archive.length);
  }
  return parts;
}

function joined(chunks: readonly Uint8Array[], bytes: number): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(bytes);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole;
}
