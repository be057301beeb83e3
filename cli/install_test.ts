import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { type Outcome, temporary } from "../tests/command_line.ts";
import { install, launcher } from "./install.ts";

const HOME = fileURLToPath(new URL("..", import.meta.url)).replace(/\/$/, "");

function run(program: string, args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  return new Promise<Outcome>((resolve) => {
    execFile(program, args, { cwd: "/", env: { ...process.env, ...env } }, (error, out, err) => {
      resolve({ code: error === null ? 0 : Number(error.code), out, err });
    });
  });
}

Deno.test("the launcher runs this clone from anywhere, and is replaced by the next", async () => {
  using folder = temporary();
  const bin = join(folder.path, "a folder's", "bin");
  const setup = join(HOME, "cli", "install.ts");
  const first = await run(Deno.execPath(), ["run", "-A", "--config", join(HOME, "deno.json"), setup], {
    HCINFER_BIN: bin,
  });
  assert.equal(first.code, 0, first.err);
  assert.match(
    first.out,
    /^wrote .*bin\/hcinfer\n.* is not on your PATH; .*\n {2}export PATH=".*bin:\$PATH"\n$/,
  );
  const program = join(bin, "hcinfer");
  assert.ok((statSync(program).mode & 0o111) === 0o111);
  const version = await run(program, ["--version"]);
  assert.match(version.out, /^\d+\.\d+\.\d+\n$/);
  assert.equal((await run(program, ["inspect", "no such folder"])).code, 5);
  const again = await run(Deno.execPath(), [
    "run",
    "-A",
    "--config",
    join(HOME, "deno.json"),
    setup,
    "--dir",
    bin,
  ], {
    PATH: `${process.env["PATH"]}:${bin}/`,
  });
  assert.match(again.out, /^wrote .*\nNow: hcinfer --help\n$/);
});

Deno.test("another program of the name stays", async () => {
  using folder = temporary();
  writeFileSync(join(folder.path, "hcinfer"), "#!/bin/sh\n");
  await assert.rejects(
    install(folder.path, HOME, Deno.execPath()),
    /is another program: give another folder/,
  );
  assert.equal(readFileSync(join(folder.path, "hcinfer"), "utf8"), "#!/bin/sh\n");
  await assert.rejects(install(join(folder.path, "hcinfer"), HOME, Deno.execPath()), /cannot make/);
});

Deno.test("a launcher whose clone or Deno is gone says so, or finds another Deno", async () => {
  using folder = temporary();
  const script = (home: string, deno: string) => {
    const path = join(folder.path, "launcher");
    writeFileSync(path, launcher(home, deno));
    return path;
  };
  const gone = await run("/bin/sh", [script("/nowhere", Deno.execPath()), "x"]);
  assert.deepEqual([gone.code, gone.err], [
    6,
    "error: hcinfer is not at /nowhere any more: run deno task install in the folder where it is\n",
  ]);
  const noDeno = await run("/bin/sh", [script(HOME, "/nowhere/it's $1")], { PATH: folder.path });
  assert.equal(noDeno.code, 6);
  assert.match(
    noDeno.err,
    /^error: Deno is not at \/nowhere\/it's \$1 any more: run npx -y deno task install in /,
  );
  mkdirSync(join(folder.path, "bin"));
  const other = join(folder.path, "bin", "deno");
  writeFileSync(other, '#!/bin/sh\necho "$@"\n', { mode: 0o755 });
  const found = execFileSync("/bin/sh", [script(HOME, "/nowhere"), "run", "a b"], {
    env: { PATH: join(folder.path, "bin") },
    encoding: "utf8",
  });
  assert.match(found, /^run -A .*main\.ts run a b\n$/);
});
