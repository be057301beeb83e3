import assert from "node:assert/strict";
import process from "node:process";
import { type ErrorKind, HcinferError } from "../compiler/errors.ts";
import { reportFailure } from "./failure.ts";
import { Interrupted } from "./interrupted.ts";

/** The exit code for an error, and what goes to standard error. */
function reported(error: unknown, debug = false): { code: number; text: string } {
  const write = process.stderr.write;
  let text = "";
  process.stderr.write = ((piece: string) => Boolean(text += piece)) as typeof write;
  try {
    return { code: reportFailure(error, debug), text };
  } finally {
    process.stderr.write = write;
  }
}

Deno.test("every kind of error has an exit code of its own, as the help says", () => {
  const codes: Readonly<Record<ErrorKind, number>> = {
    usage: 2,
    "model-description": 3,
    checkpoint: 4,
    bundle: 5,
    environment: 6,
    input: 7,
  };
  for (const [kind, code] of Object.entries(codes)) {
    const outcome = reported(new HcinferError(kind as ErrorKind, "what, and what to do"));
    assert.deepEqual(outcome, { code, text: "error: what, and what to do\n" });
  }
});

Deno.test("an interrupt is silent, anything unexpected is said to be so", () => {
  assert.deepEqual(reported(new Interrupted()), { code: 130, text: "" });
  const unexpected = reported(new TypeError("x is undefined"));
  assert.equal(unexpected.code, 1);
  assert.match(unexpected.text, /^error: x is undefined\nThis is not an error hcinfer expects; --debug/);
  assert.match(reported("text").text, /^error: text\n/);
});

Deno.test("a stack trace only when debugging", () => {
  const error = new HcinferError("input", "message");
  assert.doesNotMatch(reported(error).text, /^\s+at /m);
  const debugged = reported(error, true);
  assert.match(debugged.text, /^\s+at .*failure_test/m);
  assert.equal(debugged.code, 7);
});
