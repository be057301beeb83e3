import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { writeTinyModel } from "../tests/fixtures/tiny_model.ts";
import { printable } from "./terminal.ts";

Deno.test("text from outside cannot speak to a terminal", () => {
  assert.equal(printable("a\tb\n\u00e9 \u4f60 \ud83d\ude00"), "a\tb\n\u00e9 \u4f60 \ud83d\ude00");
  assert.equal(printable("\x1b]0;x\x07 \x9b2J \x7f \r"), "\\u001b]0;x\\u0007 \\u009b2J \\u007f \\u000d");
  assert.equal(printable("\u202eevil\u2066"), "\\u202eevil\\u2066");
  const text = { "\x9b": "\x7f\u202e\x1b\n" };
  assert.deepEqual(JSON.parse(printable(JSON.stringify(text, null, 2))), text);
});

Deno.test("a model's name reaches the terminal without its escape sequences", async () => {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-terminal-"));
  try {
    const [model, bundle] = [join(folder, "m\x1b[2J\u202emodel"), join(folder, "bundle")];
    writeTinyModel(model);
    const main = fileURLToPath(new URL("../main.ts", import.meta.url));
    for (
      const [args, code] of [
        [["compile", model, "-o", bundle], 0],
        [["inspect", bundle], 0],
        [["inspect", bundle, "--json"], 0],
        [["inspect", model], 5],
        [["compile", bundle, "-o", model], 4],
        [["compile", "--\x1b[2J"], 2],
      ] as const
    ) {
      const ended = await new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--no-check", main, ...args],
      }).output();
      const text = new TextDecoder().decode(ended.stdout) + new TextDecoder().decode(ended.stderr);
      assert.equal(ended.code, code, text);
      assert.ok(!text.includes("\x1b") && !text.includes("\u202e"), args.join(" "));
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
