import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HcinferError } from "../compiler/errors.ts";
import { allocate, mapFile } from "./mapping.ts";

function inFolder(test: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-mapping-"));
  try {
    test(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

Deno.test("a mapped file has the file's bytes", () =>
  inFolder((folder) => {
    const content = Uint8Array.from({ length: 100_001 }, (_, i) => i * 7);
    const path = join(folder, "a file \u00e9.bin");
    writeFileSync(path, content);
    using file = mapFile(path);
    assert.equal(file.byteLength, content.length);
    assert.deepEqual(file.bytes, content);
    assert.deepEqual(file.view(65_537, 10), content.subarray(65_537, 65_547));
    assert.equal(file.view(100_001, 0).length, 0);
    assert.throws(() => file.view(100_000, 2), RangeError);
  }));

Deno.test("an empty file has no bytes", () =>
  inFolder((folder) => {
    writeFileSync(join(folder, "empty"), "");
    using file = mapFile(join(folder, "empty"));
    assert.equal(file.bytes.length, 0);
  }));

Deno.test("what cannot be mapped is named, with the reason", () =>
  inFolder((folder) => {
    for (
      const [path, reason] of [[join(folder, "missing"), "No such file"], [folder, "it is a folder"]] as const
    ) {
      assert.throws(() => mapFile(path), (error) => {
        assert.ok(
          error instanceof HcinferError && error.message.includes(path) && error.message.includes(reason),
        );
        return true;
      });
    }
  }));

Deno.test("allocated memory is zero, aligned and writable; closing twice is harmless", () => {
  const memory = allocate(1_000_000);
  assert.ok(memory.bytes.every((byte) => byte === 0));
  memory.bytes[999_999] = 5;
  assert.equal(memory.view(999_999, 1)[0], 5);
  assert.equal(Deno.UnsafePointer.value(Deno.UnsafePointer.of(memory.bytes)) % 64n, 0n);
  memory.close();
  memory.close();
  assert.throws(() => memory.view(0, 1), /closed/);
});

Deno.test("memory that is not touched costs nothing, and too much is refused", () => {
  using large = allocate(2 ** 33);
  assert.equal(large.view(2 ** 33 - 8, 8)[0], 0);
  assert.equal(allocate(0).bytes.length, 0);
  assert.throws(() => allocate(2 ** 52), /out of memory: 4194304.00 GiB/);
  assert.throws(() => allocate(-1), RangeError);
});
