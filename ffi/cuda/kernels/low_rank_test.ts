import assert from "node:assert/strict";
import { fromBF16, toBF16 } from "../../../compiler/weights/half.ts";
import { factorStride } from "../../../compiler/weights/correction.ts";
import { normals } from "../../../tests/fixtures/packing.ts";
import { runInstruction } from "./fixture.ts";
import { strided } from "../../../tests/fixtures/rows.ts";

interface Factor {
  readonly stored: Int8Array | Uint16Array;
  readonly scale: Float32Array;
  readonly stride: number;
  at(component: number, i: number): number;
}

/** [rank, stride] as compiler/weights/correction.ts has it, its padding zero. */
function factor(rank: number, length: number, bf16: boolean, seed: number): Factor {
  const stride = factorStride(length), values = normals(rank * stride, seed);
  const scale = bf16 ? new Float32Array(rank).fill(1) : normals(rank, seed + 1).map((x) => 0.01 * x);
  const padded = values.map((x, i) => i % stride < length ? x : 0);
  const stored = bf16
    ? Uint16Array.from(padded, toBF16)
    : Int8Array.from(padded, (x) => Math.max(-127, Math.min(127, Math.round(40 * x))));
  const at = (c: number, i: number) => {
    const value = stored[c * stride + i]!;
    return bf16 ? fromBF16(value) : value;
  };
  return { stored, scale, stride, at };
}

function factors(rank: number, inputs: number, outputs: number, bf16: boolean) {
  const a = factor(rank, inputs, bf16, 1), b = factor(rank, outputs, bf16, 11);
  const operands = { a: a.stored, b: b.stored, aScale: a.scale, bScale: b.scale };
  const integers = { aStride: a.stride, bStride: b.stride, inputs, outputs, rank, bf16: bf16 ? 1 : 0 };
  return { a, b, operands, integers };
}

/** n, inputs, outputs, rank */
const SHAPES = [
  [1, 1, 1, 1],
  [1, 64, 100, 16],
  [3, 100, 31, 5],
  [4, 576, 513, 33],
  [5, 31, 576, 64],
  [9, 1536, 1030, 70],
  [17, 5000, 5, 8],
] as const;

for (const bf16 of [false, true]) {
  const kind = bf16 ? "bf16" : "i8";

  Deno.test(`lowRankDown with factors of ${kind}: hidden = aScale * sum a x; a token alone has the same bits`, () => {
    for (const [n, inputs, outputs, rank] of SHAPES) {
      const { a, operands, integers } = factors(rank, inputs, outputs, bf16);
      const xStride = inputs + (n % 2 === 0 ? 4 : 3), hiddenStride = Math.ceil(rank / 16) * 16;
      const x = strided(n, inputs, xStride, 21), hidden = new Float32Array(n * hiddenStride).fill(-7);
      runInstruction("lowRankDown", {
        operands: { x, ...operands, hidden },
        integers: { xStride, hiddenStride, ...integers },
        step: { n },
      });
      for (let t = 0; t < n; t++) {
        for (let c = 0; c < hiddenStride; c++) {
          const actual = hidden[t * hiddenStride + c]!;
          if (c >= rank) {
            assert.equal(actual, -7, "beyond the rank");
            continue;
          }
          let sum = 0, magnitude = 0;
          for (let i = 0; i < inputs; i++) {
            const term = a.at(c, i) * x[t * xStride + i]!;
            sum += term, magnitude += Math.abs(term);
          }
          // Terms of a lane, one after another, then five levels of a tree, then the scale.
          const additions = 4 * Math.ceil(inputs / 128) + 6;
          const bound = Math.abs(a.scale[c]!) * magnitude * additions * 2 ** -24 + 2 ** -149;
          assert.ok(
            Math.abs(actual - sum * a.scale[c]!) <= bound,
            `[${n},${inputs}] rank ${rank}: ${t}, ${c}`,
          );
        }
        const alone = new Float32Array(hiddenStride).fill(-7);
        runInstruction("lowRankDown", {
          operands: { x: x.slice(t * xStride, t * xStride + inputs), ...operands, hidden: alone },
          integers: { xStride: inputs, hiddenStride, ...integers },
        });
        assert.deepEqual(alone, hidden.slice(t * hiddenStride, (t + 1) * hiddenStride), `token ${t} alone`);
      }
    }
  });

  Deno.test(`lowRankUp with factors of ${kind} adds components in their order; a token alone has the same bits`, () => {
    for (const [n, inputs, outputs, rank] of SHAPES) {
      const { b, operands, integers } = factors(rank, inputs, outputs, bf16);
      const hiddenStride = Math.ceil(rank / 16) * 16, deltaStride = outputs + (n % 2 === 0 ? 16 : 3);
      const hidden = strided(n, rank, hiddenStride, 31),
        delta = new Float32Array((n - 1) * deltaStride + outputs).fill(-7);
      const all = new Float32Array(n * hiddenStride);
      all.set(hidden);
      runInstruction("lowRankUp", {
        operands: { hidden: all, ...operands, delta },
        integers: { hiddenStride, deltaStride, ...integers },
        step: { n },
      });
      for (let t = 0; t < n; t++) {
        for (let o = 0; o < deltaStride && t * deltaStride + o < delta.length; o++) {
          const actual = delta[t * deltaStride + o]!;
          if (o >= outputs) {
            assert.equal(actual, -7, "between rows");
            continue;
          }
          let sum = 0, magnitude = 0;
          for (let c = 0; c < rank; c++) {
            const term = hidden[t * hiddenStride + c]! * b.scale[c]! * b.at(c, o);
            sum += term, magnitude += Math.abs(term);
          }
          const bound = magnitude * (rank + 1) * 2 ** -24 + 2 ** -149;
          assert.ok(Math.abs(actual - sum) <= bound, `[${n},${outputs}] rank ${rank}: ${t}, ${o}`);
        }
        const alone = new Float32Array(outputs);
        runInstruction("lowRankUp", {
          operands: {
            hidden: all.slice(t * hiddenStride, (t + 1) * hiddenStride),
            ...operands,
            delta: alone,
          },
          integers: { hiddenStride, deltaStride: outputs, ...integers },
        });
        assert.deepEqual(alone, delta.slice(t * deltaStride, t * deltaStride + outputs), `token ${t} alone`);
      }
    }
  });
}

Deno.test("a NaN of one token stays with it", () => {
  const [n, inputs, outputs, rank] = [5, 100, 100, 20];
  const { operands, integers } = factors(rank, inputs, outputs, false);
  const x = normals(n * inputs, 3), hidden = new Float32Array(n * rank);
  x[2 * inputs + 5] = NaN;
  const sizes = { xStride: inputs, hiddenStride: rank, deltaStride: outputs, ...integers };
  runInstruction("lowRankDown", { operands: { x, ...operands, hidden }, integers: sizes, step: { n } });
  const delta = new Float32Array(n * outputs);
  runInstruction("lowRankUp", { operands: { hidden, ...operands, delta }, integers: sizes, step: { n } });
  for (let t = 0; t < n; t++) {
    assert.ok(
      delta.subarray(t * outputs, (t + 1) * outputs).every((y) => Number.isNaN(y) === (t === 2)),
      `${t}`,
    );
  }
});
