/** The command line as a user has it, for tests: a process of its own for every command. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const MAIN = fileURLToPath(new URL("../main.ts", import.meta.url));

export interface Outcome {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** Runs `hcinfer ...args`; `input` is its standard input, `env` is added to its environment. */
export function hcinfer(
  args: readonly string[],
  input = "",
  env: Readonly<Record<string, string>> = {},
): Promise<Outcome> {
  return new Promise((resolve) => {
    const options = { env: { ...process.env, ...env } };
    const child = execFile(Deno.execPath(), ["run", "-A", MAIN, ...args], options, (error, out, err) => {
      resolve({ code: error === null ? 0 : Number(error.code), out, err });
    });
    child.stdin?.end(input);
  });
}

/** A folder that is gone when the test ends. */
export function temporary(): { path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), "hcinfer-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

/** The command has failed: a message on standard error alone, no stack trace, and this exit code. */
export function assertFailed(outcome: Outcome, code: number, message: RegExp): void {
  assert.equal(outcome.code, code, outcome.err);
  assert.match(outcome.err, message);
  assert.doesNotMatch(outcome.err, /^\s+at /m);
  assert.equal(outcome.out, "");
}

/** It has worked, and nothing but `err` went to standard error. */
export function assertWorked(outcome: Outcome, err: RegExp): void {
  assert.equal(outcome.code, 0, outcome.err);
  assert.match(outcome.err, err);
}
