import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HcinferError } from "./errors.ts";
import { readRegularFile, readRegularText } from "./files.ts";

function inFolder(test: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-files-"));
  try {
    test(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

Deno.test("an ordinary file is read, through links too, up to the limit", () =>
  inFolder((folder) => {
    const file = join(folder, "file");
    writeFileSync(file, "h\u00e9llo");
    symlinkSync("file", join(folder, "link"));
    assert.equal(readRegularText(join(folder, "link")), "h\u00e9llo");
    assert.equal(readRegularFile(file, 6).length, 6);
    assert.throws(() => readRegularFile(file, 5), /has 6 bytes; at most 5 are read/);
  }));

Deno.test("what is no ordinary file is refused at once, with its name and of the kind asked for", () =>
  inFolder((folder) => {
    const pipe = join(folder, "pipe");
    execFileSync("mkfifo", [pipe]);
    const refused = (path: string, reason: RegExp) =>
      assert.throws(() => readRegularFile(path, 1000, "bundle"), (error) => {
        assert.ok(error instanceof HcinferError && error.kind === "bundle" && error.message.includes(path));
        assert.match(error.message, reason);
        return true;
      });
    refused(pipe, /a pipe or a device/);
    refused("/dev/zero", /a pipe or a device/);
    refused(folder, /a folder/);
    refused(join(folder, "missing"), /no such file/);
    refused(`${pipe}\0`, /cannot read/);
  }));
