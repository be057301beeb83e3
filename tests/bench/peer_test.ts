import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PeerBench } from "./peer.ts";

/** A program that prints its arguments to stderr and `records` to stdout. */
function withProgram(script: string, test: (program: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-peer-"));
  try {
    const program = join(folder, "llama-bench");
    writeFileSync(program, `#!/bin/sh\n${script}\n`);
    chmodSync(program, 0o755);
    test(program);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

Deno.test("a llama-bench is called with its own options before ours, and both its tests are read", () => {
  const script = `[ "$1 $2 $3 $4" = "-rtr 1 -m model.gguf" ] || exit 1
echo '[{"n_prompt": 512, "n_gen": 0, "avg_ts": 300.5, "build": 1}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 60}]'`;
  withProgram(script, (program) => {
    const peer = new PeerBench(`${program}  -rtr 1`);
    assert.deepEqual(peer.measure("model.gguf", 512, 128, 2), { prefill: 300.5, decode: 60 });
    assert.throws(() => peer.measure("model.gguf", 16, 128, 2), /printed no such test/);
  });
});

Deno.test("a program that fails, or prints something else, is an error", () => {
  withProgram("exit 3", (program) => {
    assert.throws(() => new PeerBench(program).measure("m", 1, 1, 1), /Command failed/);
  });
  withProgram("echo '{}'", (program) => {
    assert.throws(() => new PeerBench(program).measure("m", 1, 1, 1));
  });
});
