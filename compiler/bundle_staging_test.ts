import assert from "node:assert/strict";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { zipSync } from "fflate";
import { Staging } from "./bundle_staging.ts";
import { HcinferError } from "./errors.ts";

/** Puts what looks like a bundle into a folder; `text` tells one from another. */
function fill(folder: string, text: string): void {
  const manifest = { format: "hcinfer bundle", files: { "plan.json": "", "tokenizer.json": "" } };
  const zip = zipSync({ "manifest.json": new TextEncoder().encode(JSON.stringify(manifest)) });
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "plan.zip"), zip);
  writeFileSync(join(folder, "weights.safetensors"), text);
  writeFileSync(join(folder, "run.ts"), "");
  writeFileSync(join(folder, "tokenizer.json"), "{}");
}

const textOf = (folder: string) => readFileSync(join(folder, "weights.safetensors"), "utf8");

function inFolder(test: (folder: string, output: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-staging-"));
  try {
    test(folder, join(folder, "out"));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function publish(output: string, text: string, exchange?: (a: string, b: string) => boolean): void {
  using staging = new Staging(output, 0o755, exchange);
  fill(staging.folder, text);
  staging.publish();
}

const refused = (work: () => unknown, pattern: RegExp) =>
  assert.throws(work, (error) => {
    assert.ok(error instanceof HcinferError && error.kind === "usage", String(error));
    assert.match(error.message, pattern);
    return true;
  });

Deno.test("a bundle appears, and replaces the one before, with and without the system's exchange", () => {
  for (const exchange of [undefined, () => false]) {
    inFolder((folder, output) => {
      for (const text of ["one", "two", "three"]) {
        publish(output, text, exchange);
        assert.equal(textOf(output), text);
        assert.deepEqual(readdirSync(folder), ["out"]);
      }
    });
  }
});

Deno.test("many publish to one place at once, with and without the system's exchange", async () => {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-staging-"));
  try {
    const output = join(folder, "out");
    const script = join(folder, "child.ts");
    const url = new URL("./bundle_staging.ts", import.meta.url).href;
    fill(join(folder, "bundle"), "whole");
    writeFileSync(
      script,
      `import { cpSync } from "node:fs";
       import { Staging } from ${JSON.stringify(url)};
       for (let n = 0; n < 40; n++) {
         using staging = new Staging(${
        JSON.stringify(output)
      }, 0o755, ...(Deno.args.length ? [() => false] : []));
         cpSync(${JSON.stringify(join(folder, "bundle"))}, staging.folder, { recursive: true });
         staging.publish();
       }`,
    );
    const config = new URL("../deno.json", import.meta.url).pathname;
    for (const more of [[], ["without"]]) {
      const args = ["run", "-A", "--no-check", "--config", config, script, ...more];
      const children = Array.from({ length: 3 }, () => new Deno.Command(Deno.execPath(), { args }).output());
      for (const { code, stderr } of await Promise.all(children)) {
        assert.equal(code, 0, new TextDecoder().decode(stderr));
      }
      assert.equal(textOf(output), "whole");
      assert.deepEqual(readdirSync(folder).sort(), ["bundle", "child.ts", "out"]);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

Deno.test("until it is published, a bundle is its owner's, and then it goes without a trace", () =>
  inFolder((folder, output) => {
    {
      using staging = new Staging(output, 0o755);
      fill(staging.folder, "never");
      const [work = ""] = readdirSync(folder);
      assert.equal(statSync(join(folder, work)).mode & 0o777, 0o700);
    }
    assert.deepEqual(readdirSync(folder), []);
  }));

Deno.test("when the second rename fails, the old bundle is back", () =>
  inFolder((folder, output) => {
    publish(output, "old");
    assert.throws(() => {
      using staging = new Staging(output, 0o755, () => {
        rmSync(staging.folder, { recursive: true });
        return false;
      });
      fill(staging.folder, "new");
      staging.publish();
    }, /ENOENT/);
    assert.equal(textOf(output), "old");
    assert.deepEqual(readdirSync(folder), ["out"]);
  }));

Deno.test("a file that somebody puts into the old bundle in the last moment is kept", () => {
  const exchanging = (a: string, b: string) => {
    const aside = `${a}.aside`;
    renameSync(a, aside);
    renameSync(b, a);
    renameSync(aside, b);
    return true;
  };
  for (const exchange of [exchanging, () => false]) {
    inFolder((folder, output) => {
      publish(output, "old");
      let isFirst = true;
      const late = (a: string, b: string) => {
        if (isFirst) writeFileSync(join(b, "notes.md"), "mine");
        isFirst = false;
        return exchange(a, b);
      };
      refused(() => publish(output, "new", late), /not the bundle's: notes\.md; nothing was touched/);
      assert.deepEqual([textOf(output), readFileSync(join(output, "notes.md"), "utf8")], ["old", "mine"]);
      assert.deepEqual(readdirSync(folder), ["out"]);
    });
  }
});

Deno.test("what is not wholly a bundle is not replaced", () =>
  inFolder((folder, output) => {
    publish(output, "old");
    mkdirSync(join(output, "tokenizer"));
    refused(() => new Staging(output, 0o755), /not the bundle's: tokenizer;/);
    rmSync(join(output, "tokenizer"), { recursive: true });
    writeFileSync(join(output, "plan.zip"), "no archive");
    refused(() => new Staging(output, 0o755), /damaged plan\.zip/);
    rmSync(join(output, "plan.zip"));
    refused(() => new Staging(output, 0o755), /is not a bundle/);
    symlinkSync("nowhere", join(folder, "dangling"));
    refused(() => new Staging(join(folder, "dangling"), 0o755), /is a link to nothing/);
    assert.deepEqual(readdirSync(folder).sort(), ["dangling", "out"]);
  }));

Deno.test("a bundle behind a link is replaced where it is", () =>
  inFolder((folder, output) => {
    publish(output, "old");
    symlinkSync("out", join(folder, "link"));
    publish(join(folder, "link"), "new");
    assert.ok(lstatSync(join(folder, "link")).isSymbolicLink());
    assert.equal(textOf(output), "new");
  }));

Deno.test("left-overs go when they have our name and mark and nobody behind them; nothing else does", () =>
  inFolder((folder, output) => {
    const dead = "out.hcinfer-0123456789abcdef";
    {
      using living = new Staging(output, 0o755);
      const [name = ""] = readdirSync(folder);
      const mark = readFileSync(join(folder, name, "compile.lock"));
      const others = [
        "out.hcinfer-ffffffffffffffff",
        "out.hcinfer-notes",
        "out.old-123",
        "other.hcinfer-0123456789abcdef",
      ];
      for (const other of others) mkdirSync(join(folder, other));
      writeFileSync(join(folder, "out.partial-77"), "a file");
      writeFileSync(join(folder, "out.hcinfer-ffffffffffffffff", "compile.lock"), "something else");
      writeFileSync(join(folder, "other.hcinfer-0123456789abcdef", "compile.lock"), mark);
      mkdirSync(join(folder, dead));
      writeFileSync(join(folder, dead, "compile.lock"), mark);
      symlinkSync(dead, join(folder, "out.hcinfer-aaaaaaaaaaaaaaaa"));
      fill(join(folder, dead, "replaced"), "was moved aside");
      new Staging(output, 0o755)[Symbol.dispose]();
      assert.ok(existsSync(living.folder));
      const left = [...others, name, "out", "out.partial-77", "out.hcinfer-aaaaaaaaaaaaaaaa"];
      assert.deepEqual(readdirSync(folder).sort(), left.sort());
    }
    assert.equal(textOf(output), "was moved aside");
  }));
