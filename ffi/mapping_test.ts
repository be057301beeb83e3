import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { HcinferError } from "../compiler/errors.ts";
import { allocate, mapFile } from "./mapping.ts";

async function inFolder(test: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-mapping-"));
  try {
    await test(folder);
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

Deno.test("pipes and devices are refused, and nothing waits", () =>
  inFolder((folder) => {
    const pipe = join(folder, "pipe");
    execFileSync("mkfifo", [pipe]);
    for (const path of [pipe, "/dev/zero"]) {
      assert.throws(() => mapFile(path, "bundle"), /a pipe or a device/);
    }
  }));

/** Runs `script`, which has mapFile and allocate, in a process of its own. */
async function child(folder: string, script: string): Promise<{ code: number; text: string }> {
  const file = join(folder, "child.ts");
  const mapping = JSON.stringify(new URL("./mapping.ts", import.meta.url).href);
  writeFileSync(
    file,
    `import { allocate, mapFile } from ${mapping};
     import { truncateSync } from "node:fs";
     import process from "node:process";
     ${script}
     console.log("still there");`,
  );
  const config = fileURLToPath(new URL("../deno.json", import.meta.url));
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", "--config", config, file],
  }).output();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

Deno.test("a file that is cut off while it is mapped ends the process with its name", () =>
  inFolder(async (folder) => {
    const path = join(folder, "weights.safe\u001btensors");
    writeFileSync(path, new Uint8Array(100_000));
    const file = JSON.stringify(path);
    const cut = `const m = mapFile(${file}); truncateSync(${file}, 10); let sum = 0;`;
    const touched = await child(folder, `${cut} for (const byte of m.bytes) sum += byte;`);
    assert.equal(touched.code, 6);
    assert.match(
      touched.text,
      /^error: .*\/weights\.safe\?tensors was truncated or its disk failed while it was in use\n$/,
    );
    // What is left of the file's last page can be read, and a signal that somebody sent is not taken for a fault.
    const sound = `${cut} sum += m.bytes[4];`;
    assert.deepEqual(await child(folder, sound), { code: 0, text: "still there\n" });
    const sent = await child(folder, `${sound} process.kill(process.pid, "SIGBUS");`);
    assert.doesNotMatch(sent.text, /truncated/);
  }));

Deno.test("what reaches a page beyond memory or a mapped file ends the process", () =>
  inFolder(async (folder) => {
    const path = join(folder, "weights");
    writeFileSync(path, new Uint8Array(4096));
    const library = JSON.stringify(new URL("./open.ts", import.meta.url).href);
    for (const memory of [`mapFile(${JSON.stringify(path)})`, "allocate(4096)"]) {
      const read = (bytes: number) =>
        `const { library } = await import(${library});
         library().hc_checksum(${memory}.bytes, ${bytes}n, 1);`;
      assert.equal((await child(folder, read(4096))).code, 0);
      assert.notEqual((await child(folder, read(4097))).code, 0);
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
