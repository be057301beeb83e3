import assert from "node:assert/strict";
import { runInstruction } from "./fixture.ts";

Deno.test("mirror copies rows, of any number of bytes, and nothing else", () => {
  for (const [n, rowBytes] of [[1, 4], [3, 5], [2, 16], [1, 1000], [7, 4099], [40, 20000]] as const) {
    const from = Uint8Array.from({ length: n * rowBytes }, (_, i) => i * 7 + (i >> 8));
    const to = new Uint8Array(n * rowBytes + 3).fill(0xee);
    runInstruction("mirror", { operands: { from, to }, integers: { rowBytes }, step: { n } });
    assert.deepEqual(to.subarray(0, from.length), from, `${n} rows of ${rowBytes} bytes`);
    assert.deepEqual([...to.subarray(from.length)], [0xee, 0xee, 0xee]);
  }
});
