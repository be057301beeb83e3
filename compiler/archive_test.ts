import assert from "node:assert/strict";
import { zipSync } from "fflate";
import { unzipParts } from "./archive.ts";

const content = Uint8Array.from({ length: 100_000 }, (_, i) => i * i >> 5);

Deno.test("parts are unfolded, stored or deflated, and others left alone", () => {
  for (const level of [0, 6] as const) {
    const zip = zipSync({ a: content, b: new Uint8Array(0), c: content }, { level });
    assert.deepEqual(unzipParts(zip, { a: 1e5, b: 1, d: 1 }), { a: content, b: new Uint8Array(0) });
  }
});

Deno.test("an archive that is cut off is refused", () => {
  const zip = zipSync({ a: content });
  for (const bytes of [0, 10, 1000, zip.length - 30]) {
    assert.throws(() => unzipParts(zip.subarray(0, bytes), { a: 1e6 }));
  }
});

Deno.test("a part that unfolds to more than its limit is refused, whatever it claims to be", () => {
  const zip = zipSync({ a: new Uint8Array(20_000_000) });
  assert.ok(zip.length < 30_000);
  assert.throws(() => unzipParts(zip, { a: 1_000_000 }), /a unfolds to more than 1000000 bytes/);
  // The size is claimed in the part's own header and in the directory at the end.
  const claims = zip.slice();
  const view = new DataView(claims.buffer);
  for (let at = 0; at + 4 <= claims.length; at++) {
    if (view.getUint32(at, true) === 20_000_000) view.setUint32(at, 1000, true);
  }
  assert.throws(() => unzipParts(claims, { a: 1_000_000 }), /a unfolds to more than 1000000 bytes/);
});

Deno.test("a part that is there twice is refused", () => {
  const zip = zipSync({ a: content, b: content }, { level: 0 });
  const twice = Uint8Array.from(zip, (byte) => byte);
  const name = (text: string, at: number) => String.fromCharCode(twice[at] ?? 0) === text;
  const view = new DataView(twice.buffer);
  for (let at = 0; at + 50 < twice.length; at++) {
    const signature = view.getUint32(at, true);
    if (signature === 0x04034b50 && name("b", at + 30)) twice[at + 30] = 0x61;
    if (signature === 0x02014b50 && name("b", at + 46)) twice[at + 46] = 0x61;
  }
  assert.throws(() => unzipParts(twice, { a: 1e6 }), /a is in it twice/);
});
