import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { openBundle, PLAN_FILE, sha256 } from "./bundle.ts";
import { explain } from "./bundle_writer.ts";
import { HcinferError } from "./errors.ts";
import { writeTinyModel } from "../tests/fixtures/tiny_model.ts";
import { refused, Workplace } from "../tests/fixtures/workplace.ts";

Deno.test("only a bundle is replaced, and only when all its files are its own", async () => {
  using work = new Workplace();
  await refused(() => work.compile(work.model), "usage", /exists and is not a bundle; nothing was touched/);
  const inFile = join(work.model, "config.json");
  await refused(() => work.compile(inFile), "usage", /is not a folder/);
  await refused(() => work.compile(join(inFile, "bundle")), "environment", /cannot write/);
  assert.ok(existsSync(join(work.model, "model.safetensors")));
  await work.compile();
  await work.compile();
  writeFileSync(join(work.bundle, "note.txt"), "mine");
  await refused(() => work.compile(), "usage", /files in it that are not the bundle's: note\.txt; nothing/);
  assert.equal(readFileSync(join(work.bundle, "note.txt"), "utf8"), "mine");
  openBundle(work.bundle).close();
});

Deno.test("a bundle can be read by those who can read all of its checkpoint", async () => {
  using work = new Workplace();
  const modes = () => {
    rmSync(work.bundle, { recursive: true, force: true });
    return work.compile().then(() =>
      [".", ...readdirSync(work.bundle)].map((name) => statSync(join(work.bundle, name)).mode & 0o777)
    );
  };
  const umask = 0o777 & ~process.umask();
  assert.deepEqual(await modes(), [0o755 & umask, ...Array(4).fill(0o644 & umask)]);
  chmodSync(join(work.model, "tokenizer.json"), 0o600);
  assert.deepEqual(await modes(), [0o700, ...Array(4).fill(0o600)]);
  chmodSync(join(work.model, "tokenizer.json"), 0o644);
  chmodSync(work.model, 0o700);
  assert.deepEqual(await modes(), [0o700, ...Array(4).fill(0o600)]);
});

Deno.test("a pipe among the checkpoint's files is found before anything is packed", async () => {
  using work = new Workplace();
  rmSync(join(work.model, "tokenizer.json"));
  execFileSync("mkfifo", [join(work.model, "tokenizer.json")]);
  let packed = 0;
  const onProgress = () => packed++;
  await refused(
    () => work.compile(work.bundle, { onProgress }),
    "checkpoint",
    /tokenizer\.json is not a file/,
  );
  assert.equal(packed, 0);
});

Deno.test("a failed compile leaves what was there, and nothing else", async () => {
  using work = new Workplace();
  await work.compile();
  const before = sha256(readFileSync(join(work.bundle, PLAN_FILE)));
  writeTinyModel(work.model, {
    edit: (name, values) => {
      if (name === "model.layers.1.mlp.up_proj.weight") values[1234] = NaN;
    },
  });
  await refused(
    () => work.compile(),
    "checkpoint",
    /model\.layers\.1\.mlp\.up_proj\.weight .*row 24, input 34/,
  );
  assert.deepEqual(work.entries(), ["bundle", "model"]);
  assert.equal(sha256(readFileSync(join(work.bundle, PLAN_FILE))), before);
});

/** A compile in a process of its own that, when `stops`, says "half" half way and then sleeps. */
function spawnCompile(work: Workplace, stops: boolean): Deno.ChildProcess {
  const script = join(work.path, "child.ts");
  const url = (name: string) => JSON.stringify(new URL(name, import.meta.url).href);
  writeFileSync(
    script,
    `import { COMPILE_DEFAULTS, compileModel } from ${url("./compile.ts")};
     import { genericProfile } from ${url("./profile.ts")};
     await compileModel({
       ...COMPILE_DEFAULTS, profile: genericProfile(2), threads: 1,
       model: ${JSON.stringify(work.model)}, output: ${JSON.stringify(work.bundle)},
       onProgress: (done, total) => {
         if (!${stops} || done * 2 < total) return;
         console.log("half");
         Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60_000);
       },
     });`,
  );
  const config = new URL("../deno.json", import.meta.url).pathname;
  const args = ["run", "-A", "--no-check", "--config", config, script];
  return new Deno.Command(Deno.execPath(), { args, stdout: "piped" }).spawn();
}

Deno.test("a killed compile leaves no bundle that loads, and the next one cleans up", async () => {
  using work = new Workplace();
  const child = spawnCompile(work, true);
  const reader = child.stdout.getReader();
  const { value } = await reader.read();
  assert.equal(new TextDecoder().decode(value).trim(), "half");
  const leftOver = () => work.entries().filter((name) => name.startsWith("bundle."));
  const [partial = ""] = leftOver();
  assert.match(partial, /^bundle\.hcinfer-[0-9a-f]{16}$/);
  // A compile that still runs keeps its folder, whatever another one to the same place does.
  await work.compile();
  assert.deepEqual(leftOver(), [partial]);
  child.kill("SIGKILL");
  await child.status;
  await reader.cancel();
  assert.deepEqual(leftOver(), [partial]);
  await refused(() => openBundle(join(work.path, partial)), "bundle", /not a bundle/);
  await refused(() => openBundle(join(work.path, partial, "bundle")), "bundle", /not a bundle/);
  await work.compile();
  assert.deepEqual(leftOver(), []);
  openBundle(work.bundle).close();
});

Deno.test("compiles to one place at the same time all end well, and leave one sound bundle", async () => {
  using work = new Workplace();
  for (let round = 0; round < 2; round++) {
    const children = Array.from({ length: 3 }, () => spawnCompile(work, false));
    const codes = await Promise.all(children.map(async (child) => {
      await child.stdout.cancel();
      return (await child.status).code;
    }));
    assert.deepEqual(codes, [0, 0, 0]);
    assert.deepEqual(work.entries(), ["bundle", "child.ts", "model"]);
    openBundle(work.bundle).close();
  }
});

Deno.test("a full disk is an error that says so", () => {
  const full = explain(Object.assign(new Error("write"), { code: "ENOSPC" }), "/data/bundle");
  assert.ok(full instanceof HcinferError && full.kind === "environment");
  assert.match(full.message, /no space left on the disk of \/data/);
  const other = new Error("other");
  assert.equal(explain(other, "/data/bundle"), other);
});
