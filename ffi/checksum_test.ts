import assert from "node:assert/strict";
import fc from "fast-check";
import { checksum } from "./packing.ts";

const MASK = 2n ** 64n - 1n;
const CHUNK = 1 << 20;

function mix(h: bigint): bigint {
  h = (h ^ h >> 33n) * 0xFF51AFD7ED558CCDn & MASK;
  h = (h ^ h >> 33n) * 0xC4CEB9FE1A85EC53n & MASK;
  return h ^ h >> 33n;
}

/** simd/checksum.cpp's definition, word by word. */
function reference(bytes: Uint8Array): bigint {
  let whole = BigInt(bytes.length);
  for (let begin = 0; begin < bytes.length; begin += CHUNK) {
    const chunk = bytes.subarray(begin, begin + CHUNK);
    const padded = new Uint8Array(Math.ceil(chunk.length / 64) * 64);
    padded.set(chunk);
    const view = new DataView(padded.buffer);
    const states = Array.from({ length: 8 }, (_, i) => BigInt(i) + 1n);
    for (let at = 0; at < padded.length; at += 8) {
      const i = at / 8 % 8;
      const x = (states[i]! ^ view.getBigUint64(at, true)) * 0x9E3779B185EBCA87n & MASK;
      states[i] = (x << 29n | x >> 35n) & MASK;
    }
    whole = mix(whole ^ states.reduce((h, state) => mix(h ^ state), BigInt(chunk.length)));
  }
  return whole;
}

Deno.test("is what its definition says, for every length and number of threads", () => {
  for (const length of [0, 1, 7, 63, 64, 65, 1000, CHUNK, CHUNK + 1, 2 * CHUNK + 77]) {
    const bytes = Uint8Array.from({ length }, (_, i) => i * i + (i >> 8));
    const expected = reference(bytes);
    for (const threads of [1, 2, 5]) assert.equal(checksum(bytes, threads), expected, `${length} bytes`);
  }
});

Deno.test("changes with every byte", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 300 }), fc.nat(), fc.integer({ min: 1, max: 255 }), (
      bytes,
      position,
      change,
    ) => {
      const edited = bytes.slice();
      edited[position % bytes.length]! ^= change;
      assert.notEqual(checksum(edited, 1), checksum(bytes, 1));
      assert.notEqual(checksum(bytes.subarray(1), 1), checksum(bytes, 1));
    }),
  );
});
