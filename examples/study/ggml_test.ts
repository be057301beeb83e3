import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import golden from "../../tests/golden/ggml.json" with { type: "json" };
import { BLOCK_FORMATS, blockFormatOf, decodeBlocks } from "./ggml.ts";

Deno.test("blocks of every format are the numbers that the gguf package says, bit by bit", () => {
  assert.deepEqual(golden.cases.map(({ format }) => format), Object.keys(BLOCK_FORMATS));
  for (const { format, blocks, numbers } of golden.cases) {
    const name = Object.keys(BLOCK_FORMATS).find((name) => name === format);
    assert.ok(isFormat(name));
    const found = decodeBlocks(name, Buffer.from(blocks, "base64"));
    assert.equal(Buffer.from(found.buffer).toString("base64"), numbers, format);
    assert.equal(found.length, 2 * BLOCK_FORMATS[name].weights);
  }
});

function isFormat(name: string | undefined): name is keyof typeof BLOCK_FORMATS {
  return name !== undefined && Object.hasOwn(BLOCK_FORMATS, name);
}

Deno.test("a format is found by ggml's number; others are not read", () => {
  assert.equal(blockFormatOf(11), "Q3_K");
  assert.equal(blockFormatOf(0), undefined);
});
