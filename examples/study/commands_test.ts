import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { CommandFailed, commandLine, run } from "./commands.ts";

Deno.test("a command line can be typed in a shell", () => {
  assert.equal(
    commandLine(["hcinfer", "compile", "a model", "-o", "b/c", "--budget", "bytes:10%"]),
    "hcinfer compile 'a model' -o b/c --budget bytes:10%",
  );
  assert.equal(commandLine(["hcinfer", "it's"]), `hcinfer 'it'\\''s'`);
});

Deno.test("a command line names no place of this machine", () => {
  const inside = fileURLToPath(new URL("../models/tiny-dense", import.meta.url));
  assert.equal(
    commandLine(["hcinfer", "compile", inside, "-o", "/somewhere/else/SmolLM2"]),
    "hcinfer compile examples/models/tiny-dense -o path/to/SmolLM2",
  );
});

Deno.test("a command that fails says what it said", async () => {
  await assert.rejects(
    run(["hcinfer", "eval", "no-such-bundle", "--text", "deno.json"], new AbortController().signal),
    (error) => error instanceof CommandFailed && /no-such-bundle/.test(error.message),
  );
});
