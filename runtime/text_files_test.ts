import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HcinferError } from "../compiler/errors.ts";
import { folderFiles } from "./text_files.ts";

Deno.test("a folder gives its regular files, and links to them", () => {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-"));
  try {
    const refuses = (message: RegExp) => (error: unknown) =>
      error instanceof HcinferError && error.kind === "checkpoint" && message.test(error.message);
    const { path, file } = folderFiles(folder);
    assert.equal(path, folder);
    assert.equal(file("tokenizer.json"), undefined);
    assert.equal(folderFiles(join(folder, "nowhere")).file("tokenizer.json"), undefined);
    writeFileSync(join(folder, "there"), "text");
    symlinkSync("there", join(folder, "link"));
    assert.equal(new TextDecoder().decode(file("there")), "text");
    assert.equal(new TextDecoder().decode(file("link")), "text");
    mkdirSync(join(folder, "inner"));
    assert.throws(() => file("inner"), refuses(/inner is no regular file/));
    symlinkSync("/dev/zero", join(folder, "endless"));
    assert.throws(() => file("endless"), refuses(/endless is no regular file/));
    writeFileSync(join(folder, "huge"), "");
    truncateSync(join(folder, "huge"), 2 ** 30);
    assert.throws(() => file("huge"), refuses(/huge has 1073741824 bytes, at most/));
  } finally {
    rmSync(folder, { recursive: true });
  }
});
