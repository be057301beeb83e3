import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { Interrupted, interruptible } from "./interrupted.ts";

const path = (name: string) => fileURLToPath(new URL(`../${name}`, import.meta.url));

Deno.test("an interrupted compile removes what it wrote and exits as shells do", async () => {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-interrupted-"));
  try {
    for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
      const output = join(folder, "bundle");
      const model = path("examples/models/tiny-dense");
      const options = ["--correct", "both", "--threads", "1"];
      const child = new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--no-check", path("main.ts"), "compile", model, "-o", output, ...options],
        stderr: "piped",
      }).spawn();
      while (readdirSync(folder).length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
      child.kill(signal);
      const ended = await child.output();
      assert.equal(ended.code, code);
      assert.equal(new TextDecoder().decode(ended.stderr), "");
      assert.deepEqual(readdirSync(folder), []);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

Deno.test("work that nobody interrupts ends with its result", async () => {
  assert.equal(await interruptible(() => 7), 7);
  await assert.rejects(
    interruptible((check) => {
      process.kill(process.pid, "SIGTERM");
      for (;;) check();
    }),
    (error) => error instanceof Interrupted && error.exitCode === 143,
  );
});
