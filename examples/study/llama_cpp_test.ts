import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { temporary } from "../../tests/command_line.ts";
import { CommandFailed, run } from "./commands.ts";

Deno.test("without llama.cpp, and without a way to it, the command says so", async () => {
  using folder = temporary();
  const output = join(folder.path, "model");
  const { signal } = new AbortController();
  const environment = {
    HCINFER_BENCH_CACHE: folder.path,
    npm_config_cache: join(folder.path, "npm"),
    npm_config_offline: "true",
  };
  const before = Object.keys(environment).map((name) => [name, process.env[name]] as const);
  Object.assign(process.env, environment);
  try {
    await assert.rejects(
      run([
        "deno",
        "run",
        "-A",
        "examples/study/llama_cpp.ts",
        "examples/models/tiny-dense",
        "Q4_0",
        "-o",
        output,
      ], signal),
      (error) =>
        error instanceof CommandFailed &&
        /^npm cannot install node-llama-cpp [\d.]+, .*: \S/.test(error.message),
    );
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  }
  assert.ok(!existsSync(output));
});
