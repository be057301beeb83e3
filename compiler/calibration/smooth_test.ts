import assert from "node:assert/strict";
import { normals } from "../../tests/fixtures/packing.ts";
import { moments, tokens } from "../../tests/fixtures/fitting.ts";
import type { Matrix } from "../weights/inventory.ts";
import { awq, type Channel, haq, joint, type Quantizer } from "../weights/quantizer.ts";
import { tensorOf, type WeightSource } from "../weights/source.ts";
import type { Fold } from "./folds.ts";
import { scalesOf, smoothWindow } from "./smooth.ts";

const [outputs, inputs] = [24, 96];
const DEAD = 17;

/** A window with correlated inputs of very different sizes, of which one is always 0. */
function window(quantizer: Quantizer, elementOf: (input: number) => number = (j) => j) {
  const text = tokens(300, inputs, 11);
  const x = text.kept.map((value, at) => at % inputs === DEAD ? 0 : value + text.chosen[at]!);
  const zeros = new Float32Array(inputs * inputs);
  const all = { inputs, kept: moments(x, x, inputs), crossed: zeros, chosen: zeros };
  const size = (of: (values: number[]) => number) =>
    Float32Array.from({ length: inputs }, (_, j) => of([...x.filter((_, at) => at % inputs === j)]));
  const ref = { path: "w", tensor: "w.weight", outputs };
  const matrix: Matrix = {
    name: "w",
    sections: [ref],
    firstRows: [0],
    rows: 32,
    inputs,
    format: { kind: "q3", group: 32 },
    window: "0.w",
  };
  const source: WeightSource = {
    origin: "test",
    matrix: () => tensorOf(normals(outputs * inputs, 2), [outputs, inputs]),
    vector: () => new Float32Array(0),
  };
  const fold: Fold = {
    tensor: "norm.weight",
    elements: new Set(Array.from({ length: inputs }, (_, j) => elementOf(j))).size,
    window: undefined,
    elementOf: Int32Array.from({ length: inputs }, (_, j) => elementOf(j)),
  };
  return smoothWindow({
    matrix,
    source,
    moments: all,
    measured: {
      fisher: Float32Array.from({ length: 32 }, (_, o) => o < outputs ? 1 + o : 0),
      inputSquare: size((values) => values.reduce((sum, v) => sum + v * v / values.length, 0)),
      inputMax: size((values) => Math.max(...values.map(Math.abs))),
    },
    sample: Float32Array.from(x.subarray(0, 50 * inputs)),
    fold,
    rule: quantizer.smoothing!,
    pack: quantizer.window(all),
    threads: 1,
  });
}

Deno.test("smoothing wins where channels differ; a channel that is always 0 keeps its weights", () => {
  for (const quantizer of [awq(1), haq(1), joint(1)]) {
    const { scales, alpha, loss, unsmoothed } = window(quantizer);
    assert.ok(loss <= unsmoothed, `${quantizer.name}: ${loss} of ${unsmoothed}`);
    assert.ok(scales && alpha !== undefined, quantizer.name);
    assert.equal(scales.inputs[DEAD], 1);
    assert.ok(scales.inputs.every((s) => s >= 1 / 256 && s <= 256));
  }
  const { loss, unsmoothed } = window(awq(1));
  assert.ok(loss < 0.9 * unsmoothed, `${loss} of ${unsmoothed}`);
});

Deno.test("channels that share an element of what is divided share its scale", () => {
  const { scales } = window(awq(1), (j) => j % 48);
  assert.ok(scales);
  assert.equal(scales.elements.length, 48);
  for (let j = 0; j < 48; j++) assert.equal(scales.inputs[j], scales.inputs[j + 48]);
});

Deno.test("scales are the rules of the papers, with a geometric mean of 1", () => {
  const channels: Channel[] = [
    { square: 4, largest: 8, weight: 2 },
    { square: 64, largest: 32, weight: 1 },
    { square: 0, largest: 0, weight: 1 },
  ];
  const close = (found: Float32Array, expected: number[]) =>
    expected.forEach((value, i) => assert.ok(Math.abs(found[i]! - value) < 1e-6, `${found}`));
  close(scalesOf(channels, awq(1).smoothing!.scale, 0.5), [0.5 ** 0.5, 2 ** 0.5, 1]);
  close(scalesOf(channels, awq(1).smoothing!.scale, 0), [1, 1, 1]);
  // sqrt(8 / 2) and sqrt(32 / 1).
  close(scalesOf(channels, joint(1).smoothing!.scale, 0.5), [4 ** -0.25, 4 ** 0.25, 1]);
  close(scalesOf(channels, haq(1).smoothing!.scale, 0.5), [8 ** -0.25, 8 ** 0.25, 1]);
});
