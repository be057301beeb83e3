import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { HcinferError } from "../compiler/errors.ts";
import { folderFiles, type TextFiles } from "./text_files.ts";
import { secondsFor } from "./time_limit.ts";
import { Tokenizer } from "./tokenizer.ts";

const tinyDense = fileURLToPath(new URL("../examples/models/tiny-dense", import.meta.url));
const heldout = fileURLToPath(new URL("../examples/models/heldout.txt", import.meta.url));
const tokenizer = Tokenizer.open(folderFiles(tinyDense), 4096);

/** A folder with the bundled tokenizer's files, changed. */
function withFolder(change: (folder: string) => void, test: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-"));
  try {
    for (const file of ["tokenizer.json", "tokenizer_config.json"]) {
      cpSync(join(tinyDense, file), join(folder, file));
    }
    change(folder);
    test(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function refuses(message: RegExp): (error: unknown) => boolean {
  return (error) =>
    error instanceof HcinferError && error.kind === "checkpoint" && message.test(error.message);
}

Deno.test("ids of the Rust implementation", () => {
  // Written with tokenizers 0.23.2 (Python) from the same tokenizer.json.
  const text = "The compiler's façade: naïve 12 ≠ 3\r\n\tδx 👩‍🔬!<|im_end|>";
  assert.deepEqual([...tokenizer.encode(text)], [
    390,
    1694,
    491,
    274,
    67,
    130,
    103,
    1271,
    28,
    294,
    67,
    130,
    110,
    334,
    223,
    19,
    20,
    223,
    161,
    234,
    257,
    223,
    21,
    204,
    201,
    200,
    141,
    115,
    90,
    223,
    175,
    256,
    242,
    105,
    161,
    225,
    238,
    175,
    256,
    245,
    108,
    3,
    2,
  ]);
  const ids = tokenizer.encode(readFileSync(heldout, "utf8"));
  assert.equal(ids.length, 53653);
  assert.equal(ids.reduce((sum, id, i) => (sum + id * (i % 9973 + 1)) % 1000000007, 0), 293573089);
});

const textual = fc.oneof(fc.string(), fc.string({ unit: "grapheme" }), fc.string({ unit: "binary" }));

Deno.test("decode is the inverse of encode", () => {
  fc.assert(fc.property(textual, (text) => {
    assert.equal(tokenizer.decode(tokenizer.encode(text), { skipSpecialTokens: false }), text.toWellFormed());
  }));
  // Clean-up would take the spaces away.
  assert.equal(tokenizer.decode(tokenizer.encode("a , b . it 's")), "a , b . it 's");
});

Deno.test("decode: nothing, ids without a token, special tokens", () => {
  assert.equal(tokenizer.decode([]), "");
  assert.equal(tokenizer.decode([4096, 99999]), "");
  const ids = tokenizer.encode("<|im_start|>user");
  assert.equal(tokenizer.decode(ids), "user");
  assert.equal(tokenizer.decode(ids, { skipSpecialTokens: false }), "<|im_start|>user");
  assert.equal(tokenizer.idOf("<|im_end|>"), 2);
  assert.equal(tokenizer.idOf("no such token"), undefined);
});

Deno.test("a folder without tokenizer_config.json", () => {
  withFolder((folder) => rmSync(join(folder, "tokenizer_config.json")), (folder) => {
    assert.deepEqual(Tokenizer.open(folderFiles(folder), 4096).encode("hello"), tokenizer.encode("hello"));
  });
});

Deno.test("files that do not fit are refused by name", () => {
  assert.throws(
    () => Tokenizer.open(folderFiles("/nowhere"), 4096),
    refuses(/nowhere.tokenizer\.json does not exist/),
  );
  assert.throws(() => Tokenizer.open(folderFiles(tinyDense), 49152), refuses(/4096 token ids.*49152/));
  assert.throws(() => Tokenizer.open(folderFiles(tinyDense), 4095), refuses(/4096 token ids.*4095/));
  assert.equal(Tokenizer.open(folderFiles(tinyDense), 4224).size, 4096); // a padded vocabulary
  const broken: readonly [string, RegExp][] = [
    ["", /cannot be read as JSON/],
    ["{", /cannot be read as JSON/],
    ["[]", /does not fit/],
    ["{}", /model/],
    ['{"model": {"vocab": {"a": -1}}}', /model\.vocab/],
    ['{"model": {"vocab": {"a": 4294967295}}}', /model\.vocab/],
    ['{"model": {"type": "None", "vocab": {"a": 4095}, "merges": []}}', /model\.type/],
    ['{"model": {"type": "BPE", "vocab": {"a": 4095}}}', /is not supported/],
  ];
  for (const [content, message] of broken) {
    withFolder((folder) => writeFileSync(join(folder, "tokenizer.json"), content), (folder) => {
      assert.throws(() => Tokenizer.open(folderFiles(folder), 4096), refuses(message));
    });
  }
});

Deno.test("damaged tokenizer files never escape as untyped errors", () => {
  const whole: unknown = JSON.parse(readFileSync(join(tinyDense, "tokenizer.json"), "utf8"));
  const damage = fc.record({
    field: fc.constantFrom(
      "model",
      "added_tokens",
      "normalizer",
      "pre_tokenizer",
      "post_processor",
      "decoder",
    ),
    value: fc.jsonValue(),
  });
  withFolder(() => {}, (folder) => {
    fc.assert(
      fc.property(damage, ({ field, value }) => {
        writeFileSync(
          join(folder, "tokenizer.json"),
          JSON.stringify({ ...whole as Record<string, unknown>, [field]: value }),
        );
        try {
          Tokenizer.open(folderFiles(folder), 4096);
        } catch (error) {
          assert.ok(error instanceof HcinferError, String(error));
        }
      }),
      { numRuns: 30 },
    );
  });
});

/** The bundled files, with fields of tokenizer.json replaced. */
function changed(fields: Readonly<Record<string, unknown>>): TextFiles {
  const whole: unknown = JSON.parse(readFileSync(join(tinyDense, "tokenizer.json"), "utf8"));
  const json = JSON.stringify({ ...whole as Record<string, unknown>, ...fields });
  return {
    path: "changed",
    file: (name) => name === "tokenizer.json" ? new TextEncoder().encode(json) : undefined,
  };
}

Deno.test("rules that do not end are stopped, and the tokenizer works on", () => {
  const split = { type: "Split", pattern: { Regex: "(a+)+$" }, behavior: "Isolated", invert: false };
  const slow = Tokenizer.open(changed({ pre_tokenizer: split }), 4096);
  assert.throws(
    () => slow.encode("a".repeat(60) + "b"),
    (error) =>
      error instanceof HcinferError && error.kind === "input" &&
      /converting 61 characters by the rules of changed.tokenizer.json took more than/.test(error.message),
  );
  assert.equal(slow.decode(slow.encode("aaa")), "aaa");
  const decoder = { type: "Replace", pattern: { Regex: "(a+)+$" }, content: "" };
  const added_tokens = [{ id: 4095, content: "a".repeat(60) + "b", special: false }];
  const decoding = Tokenizer.open(changed({ decoder, added_tokens }), 4096);
  assert.equal(decoding.decode(decoding.encode("a")), "");
  assert.throws(
    () => decoding.decode([4095]),
    refuses(/converting 1 tokens by the rules of .* took more than/),
  );
});

Deno.test("long texts and long words take a small part of the time they may", () => {
  const prose = readFileSync(heldout, "utf8");
  for (const text of [prose, "ab".repeat(30_000), " ".repeat(60_000) + "b", "🔬".repeat(30_000)]) {
    const began = performance.now();
    assert.equal(tokenizer.decode(tokenizer.encode(text)), text);
    assert.ok((performance.now() - began) / 1000 < secondsFor(text.length) / 2);
  }
});

Deno.test("rules that nest without end are refused", () => {
  let nested: unknown = { type: "Lowercase" };
  for (let depth = 0; depth < 20; depth++) nested = { type: "Sequence", normalizers: [nested] };
  assert.throws(
    () => Tokenizer.open(changed({ normalizer: nested }), 4096),
    refuses(/normalizer: nests more than 32 deep/),
  );
  const deep = `{"model": {"vocab": {}}, "decoder": ${"[".repeat(1_000_000)}${"]".repeat(1_000_000)}}`;
  const files = { path: "deep", file: () => new TextEncoder().encode(deep) };
  assert.throws(() => Tokenizer.open(files, 4096), refuses(/nests|JSON/));
});
