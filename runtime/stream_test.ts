import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { TextStream } from "./stream.ts";
import { folderFiles } from "./text_files.ts";
import { Tokenizer } from "./tokenizer.ts";

const tokenizer = Tokenizer.open(
  folderFiles(fileURLToPath(new URL("../examples/models/tiny-dense", import.meta.url))),
  4096,
);

function pieces(ids: Iterable<number>): string[] {
  const stream = new TextStream(tokenizer);
  const out: string[] = [];
  for (const id of ids) out.push(stream.push(id));
  out.push(stream.end());
  return out;
}

Deno.test("pieces of any text join to it, and none splits a character", () => {
  const text = fc.oneof(fc.string(), fc.string({ unit: "grapheme" }), fc.string({ unit: "binary" }));
  fc.assert(fc.property(text, (text) => {
    const streamed = pieces(tokenizer.encode(text));
    assert.equal(streamed.join(""), tokenizer.decode(tokenizer.encode(text)));
    // No piece has half of a surrogate pair, and U+FFFD appears only where the text has it.
    for (const piece of streamed) assert.ok(piece.isWellFormed());
    if (!text.toWellFormed().includes("\uFFFD")) {
      for (const piece of streamed) assert.ok(!piece.includes("\uFFFD"));
    }
  }));
});

Deno.test("pieces of any tokens, sound UTF-8 or not, join to their text", () => {
  // The first ids are special tokens and single bytes.
  const ids = fc.array(fc.oneof(fc.integer({ min: 0, max: 260 }), fc.integer({ min: 0, max: 4200 })));
  fc.assert(fc.property(ids, (ids) => {
    assert.equal(pieces(ids).join(""), tokenizer.decode(ids));
  }));
});

Deno.test("an emoji of many tokens comes whole", () => {
  const emoji = "👩";
  const ids = tokenizer.encode(emoji);
  assert.ok(ids.length >= 3);
  assert.deepEqual(pieces(ids), [...Array<string>(ids.length - 1).fill(""), emoji, ""]);
});

Deno.test("an incomplete character at the end becomes U+FFFD", () => {
  const ids = tokenizer.encode("a👩").subarray(0, 2);
  assert.deepEqual(pieces(ids), ["a", "", "\uFFFD"]);
});

Deno.test("a decoder that strips the first space keeps the others", () => {
  // As SentencePiece tokenizers decode: every word has a leading space, the text's first is dropped.
  const words = ["", " the", " cat", " ", " sat"];
  const metaspace = { decode: (ids: Iterable<number>) => [...ids].map((id) => words[id]).join("").slice(1) };
  const stream = new TextStream(metaspace);
  const ids = [1, 2, 0, 3, 4, 0, 1];
  assert.equal(ids.map((id) => stream.push(id)).join("") + stream.end(), metaspace.decode(ids));
});

Deno.test("the cost of a token does not grow with the text", () => {
  let decoded = 0;
  const stream = new TextStream({
    decode(ids) {
      decoded += [...ids].length;
      return tokenizer.decode(ids);
    },
  });
  const ids = tokenizer.encode("one two 👩 three four ".repeat(100));
  for (const id of ids) stream.push(id);
  assert.ok(decoded < 12 * ids.length, `${decoded} ids decoded for ${ids.length}`);
});
