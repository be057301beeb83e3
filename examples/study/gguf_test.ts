import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { temporary } from "../../tests/command_line.ts";
import { readGguf, writeGguf } from "./gguf.ts";

const METADATA = {
  "general.architecture": { text: "llama" },
  "llama.block_count": { u32: 2 },
  "llama.epsilon": { f32: 1e-5 },
  "tokens": { texts: ["a", "bc", ""] },
  "types": { i32s: Int32Array.of(1, -1) },
};
const TENSORS = [["first", [3, 2], 6], ["second", [33], 33]] as const;

function written() {
  using folder = temporary();
  const path = join(folder.path, "model.gguf");
  const size = writeGguf(
    path,
    METADATA,
    TENSORS.map(([name, dimensions, bytes], i) => ({
      name,
      dimensions,
      type: i,
      bytes,
      data: () => new Uint8Array(bytes).fill(i + 1),
    })),
  );
  return { bytes: readFileSync(path), size };
}

Deno.test("tensors come back from a file, whatever metadata stands before them", () => {
  const { bytes, size } = written();
  assert.equal(bytes.length, size);
  const tensors = readGguf(bytes, "model.gguf");
  assert.deepEqual([...tensors.keys()], ["first", "second"]);
  for (const [i, [name, dimensions, length]] of TENSORS.entries()) {
    const found = tensors.get(name)!;
    assert.deepEqual([found.dimensions, found.type], [dimensions, i]);
    assert.deepEqual([...found.data(length)], Array(length).fill(i + 1));
  }
  assert.throws(() => tensors.get("second")!.data(65), /second ends at byte/);
});

Deno.test("a file that is cut off anywhere in its header, or is another one, is refused", () => {
  const { bytes } = written();
  const header = bytes.indexOf("second") + "second".length;
  for (let length = 0; length < header; length++) {
    assert.throws(() => readGguf(bytes.subarray(0, length), "model.gguf"), {
      name: "HcinferError",
      kind: "checkpoint",
      message: /^model\.gguf is not a sound GGUF file: it ends at byte/,
    });
  }
  const other = Uint8Array.from(bytes);
  other[4] = 2;
  assert.throws(() => readGguf(other, "model.gguf"), /no GGUF of version 3/);
});
