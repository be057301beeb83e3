import assert from "node:assert/strict";
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { exchange, FileLock } from "./files.ts";

function inFolder(test: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-files-"));
  try {
    test(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

Deno.test("a lock has one holder, until it is given back", () =>
  inFolder((folder) => {
    const file = join(folder, "lock");
    assert.equal(FileLock.tryTake(file), undefined);
    {
      using lock = FileLock.create(file);
      assert.ok(lock !== undefined);
      assert.equal(FileLock.create(file), undefined);
      assert.equal(FileLock.tryTake(file), undefined);
    }
    using again = FileLock.tryTake(file);
    assert.ok(again !== undefined);
    symlinkSync(file, join(folder, "link"));
    assert.equal(FileLock.tryTake(join(folder, "link")), undefined);
  }));

Deno.test("two folders are exchanged, or nothing changes", () =>
  inFolder((folder) => {
    const [a, b] = [join(folder, "a"), join(folder, "b")];
    mkdirSync(a);
    mkdirSync(b);
    writeFileSync(join(a, "mark"), "");
    const done = exchange(a, b);
    assert.deepEqual([existsSync(join(a, "mark")), existsSync(join(b, "mark"))], [!done, done]);
    assert.equal(exchange(a, join(folder, "missing")), false);
  }));
