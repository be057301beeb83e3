import assert from "node:assert/strict";
import { closeSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { temporary } from "../tests/command_line.ts";
import { BlockFile } from "./block_file.ts";

const MiB = 2 ** 20;

Deno.test("pieces in any order, small and large, at the ends of blocks and of the file", () => {
  using folder = temporary();
  const path = join(folder.path, "file");
  const expected = new Uint8Array(41 * MiB + 12_345);
  for (let i = 0; i < expected.length; i++) expected[i] = Math.imul(i, 0x9E3779B1) >>> 24;
  // Lengths from a few bytes to several blocks, dealt out so that many blocks are begun before any is complete.
  const lengths = [7, 64, 4096, 65_537, MiB, 2 * MiB, 5 * MiB + 3];
  const pieces: { from: number; to: number }[] = [];
  for (let from = 0, n = 0; from < expected.length; n++) {
    const to = Math.min(expected.length, from + lengths[n * 5 % lengths.length]!);
    pieces.push({ from, to });
    from = to;
  }
  const order = pieces.map((_, n) => n).sort((a, b) => a * 7919 % pieces.length - b * 7919 % pieces.length);

  const descriptor = openSync(path, "wx+");
  const file = new BlockFile(descriptor);
  file.resize(expected.length + 5 * MiB);
  for (const [n, piece] of order.entries()) {
    const { from, to } = pieces[piece]!;
    file.write(expected.subarray(from, to), from);
    const read = new Uint8Array(to - from);
    if (n % 10 === 0) {
      assert.equal(file.read(read, from), read.length);
      assert.deepEqual(read, expected.subarray(from, to));
    }
    if (n === pieces.length >> 1) file.resize(expected.length);
  }
  assert.equal(file.read(new Uint8Array(10), expected.length - 4), 4);
  file.write(expected.subarray(5, 9), 0);
  file.flush();
  closeSync(descriptor);
  const found = readFileSync(path);
  assert.equal(found.length, expected.length);
  assert.deepEqual([...found.subarray(0, 4)], [...expected.subarray(5, 9)]);
  assert.ok(found.subarray(4).equals(expected.subarray(4)));
});
