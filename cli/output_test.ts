import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HcinferError } from "../compiler/errors.ts";
import { writeFile } from "./output.ts";

async function inFolder(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-output-"));
  try {
    await test(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const put = (path: string, text: string) =>
  writeFile(path, (append) => append(new TextEncoder().encode(text)));

Deno.test("a file is written, and one that is there replaced with its permissions", () =>
  inFolder(async (folder) => {
    const file = join(folder, "file");
    await put(file, "one");
    chmodSync(file, 0o640);
    await put(file, "two");
    assert.equal(readFileSync(file, "utf8"), "two");
    assert.equal(statSync(file).mode & 0o777, 0o640);
    assert.deepEqual(readdirSync(folder), ["file"]);
  }));

Deno.test("links are followed, and names that look like ours are not touched", () =>
  inFolder(async (folder) => {
    const [file, link, precious] = [join(folder, "file"), join(folder, "link"), join(folder, "precious")];
    writeFileSync(precious, "precious");
    writeFileSync(file, "old");
    symlinkSync("file", link);
    symlinkSync("precious", `${file}.tmp`);
    symlinkSync("precious", `${link}.tmp`);
    await put(link, "new");
    assert.ok(lstatSync(link).isSymbolicLink());
    assert.equal(readFileSync(file, "utf8"), "new");
    assert.equal(readFileSync(precious, "utf8"), "precious");
  }));

Deno.test("what is no ordinary file is refused, and a failure leaves nothing", () =>
  inFolder(async (folder) => {
    const refused = (path: string, kind: string, reason: RegExp) =>
      assert.rejects(put(path, "x"), (error) => {
        assert.ok(error instanceof HcinferError && error.kind === kind, String(error));
        assert.match(error.message, reason);
        return true;
      });
    execFileSync("mkfifo", [join(folder, "pipe")]);
    symlinkSync("nowhere", join(folder, "dangling"));
    await refused(join(folder, "pipe"), "usage", /a pipe or a device/);
    await refused("/dev/null", "usage", /a pipe or a device/);
    await refused(folder, "usage", /a folder/);
    await refused(join(folder, "dangling"), "usage", /a link to nothing/);
    await refused(join(folder, "missing", "file"), "environment", /cannot write .*ENOENT/);
    const fault = new Error("fault");
    await assert.rejects(
      writeFile(join(folder, "file"), () => {
        throw fault;
      }),
      fault,
    );
    assert.deepEqual(readdirSync(folder).sort(), ["dangling", "pipe"]);
  }));
