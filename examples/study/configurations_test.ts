import assert from "node:assert/strict";
import { hcinfer } from "../../tests/command_line.ts";
import { CONFIGURATIONS, configurationsOf } from "./configurations.ts";

Deno.test("every configuration has a name of its own, and the short list has some of every series", () => {
  const names = CONFIGURATIONS.map(({ name }) => name);
  assert.equal(new Set(names).size, names.length);
  const series = (list: "full" | "short") => new Set(configurationsOf(list).map(({ series }) => series));
  assert.ok(series("full").difference(series("short")).isSubsetOf(new Set(["factors"])));
});

Deno.test("a name says the bits of its rows where they are not 3", () => {
  for (const { name, options } of CONFIGURATIONS) {
    const forms = options[options.indexOf("--correct") + 1];
    if (forms !== "sparse" && forms !== "both") continue;
    const width = options[options.indexOf("--residual-width") + 1];
    assert.equal(width, /, (\d) bits/.exec(name)?.[1] ?? "3", name);
  }
});

Deno.test("compile takes the options of every configuration, as far as they are judged before the model", async () => {
  // A study finds a contradiction only when it comes to it, hours later. Four processes at a time.
  for (let i = 0; i < CONFIGURATIONS.length; i += 4) {
    await Promise.all(
      CONFIGURATIONS.slice(i, i + 4).map(async ({ name, options }) => {
        const { code, err } = await hcinfer(["compile", "no-such-model", "-o", "no-such-bundle", ...options]);
        assert.equal(code, 4, `${name}: ${err}`);
        assert.match(err, /no-such-model does not exist/);
      }),
    );
  }
});
