import assert from "node:assert/strict";
import { factorStride, RESIDUAL_WIDTHS, residualShape } from "./correction.ts";
import {
  decodeFactors,
  decodeResidual,
  encodeResidual,
  packResidualRow,
  unpackResidualRow,
} from "./correction_reference.ts";

Deno.test("golden bytes of a residual row of 4 bits", () => {
  // 4 codes a word, 64 outputs a block: output 0 is bits 0..3 of word 0, output 16 bits 4..7, output 1 word 1.
  const codes = new Uint8Array(70).fill(8);
  codes[0] = 1;
  codes[16] = 15;
  codes[1] = 3;
  codes[64] = 2;
  const row = packResidualRow(codes, 4);
  assert.equal(row.length, 64);
  assert.deepEqual([...row.subarray(0, 6)], [0xf1, 0x88, 0x83, 0x88, 0x88, 0x88]);
  assert.deepEqual([...row.subarray(32, 36)], [0x82, 0x88, 0x88, 0x88]);
});

Deno.test("golden bytes of a residual row of 3 and 5 bits: words keep a spare bit", () => {
  // 3 bits, 5 codes a word: zero is 4, so a word of zeros is 4 * (1 + 8 + 64 + 512 + 4096) = 0x4924.
  assert.deepEqual([...packResidualRow(Uint8Array.of(7), 3).subarray(0, 4)], [0x27, 0x49, 0x24, 0x49]);
  // 5 bits, 3 codes a word: zero is 16, 16 * (1 + 32 + 1024) = 0x4210.
  assert.deepEqual([...packResidualRow(Uint8Array.of(31), 5).subarray(0, 4)], [0x1f, 0x42, 0x10, 0x42]);
});

Deno.test("residual rows pack and unpack for every width and ragged lengths", () => {
  for (const width of RESIDUAL_WIDTHS) {
    for (const outputs of [1, 16, 63, 64, 65, 200]) {
      const codes = Uint8Array.from({ length: outputs }, (_, i) => 1 + (i * 7) % (2 ** width - 1));
      const row = packResidualRow(codes, width);
      assert.equal(row.length, residualShape(width, outputs).rowBytes);
      assert.deepEqual(unpackResidualRow(row, width, outputs), codes);
    }
  }
});

Deno.test("a stored residual wins back most of the error", () => {
  const [outputs, inputs] = [48, 40];
  const error = Float64Array.from(
    { length: outputs * inputs },
    (_, i) => Math.sin(i * 2.3) * (1 + i % 5) * 0.01,
  );
  const energy = error.reduce((sum, e) => sum + e * e, 0);
  for (const [width, bound] of [[2, 0.4], [3, 0.1], [4, 0.02], [5, 0.006], [8, 1e-4]] as const) {
    const stored = encodeResidual(error, outputs, inputs, width);
    const decoded = decodeResidual(stored, width, outputs, inputs);
    const lost = error.reduce((sum, e, i) => sum + (e - (decoded[i] ?? 0)) ** 2, 0) / energy;
    assert.ok(lost < bound, `${width} bits: ${lost}`);
    const total = stored.norm.reduce((sum, n) => sum + n * n, 0);
    assert.ok(Math.abs(total / energy - 1) < 1e-5);
  }
});

Deno.test("factors decode by component, in both types", () => {
  const [outputs, inputs] = [3, 2];
  const scales = { aScale: Float32Array.of(0.5, 1), bScale: Float32Array.of(2, 1) };
  const a = new Uint8Array(2 * factorStride(inputs));
  const b = new Uint8Array(2 * factorStride(outputs));
  a.set([1, 0xfe]); // 1, -2
  b.set([3, 4, 5]);
  b.set([1, 1, 1], factorStride(outputs)); // meets a component of zeros
  const i8 = decodeFactors({ a, b, ...scales }, "i8", outputs, inputs, 2);
  assert.deepEqual([...i8].map((x) => x + 0), [3, -6, 4, -8, 5, -10]);

  const a16 = new Uint8Array(2 * factorStride(inputs));
  const b16 = new Uint8Array(2 * factorStride(outputs));
  a16.set([0x80, 0x3f, 0x00, 0xc0]); // 1, -2
  b16.set([0x00, 0x3f]); // 0.5
  const ones = { aScale: Float32Array.of(1), bScale: Float32Array.of(1) };
  const bf16 = decodeFactors({ a: a16, b: b16, ...ones }, "bf16", outputs, inputs, 1);
  assert.deepEqual([...bf16].map((x) => x + 0), [0.5, -1, 0, 0, 0, 0]);
});
