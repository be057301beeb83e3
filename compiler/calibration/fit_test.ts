import assert from "node:assert/strict";
import { temporary } from "../../tests/command_line.ts";
import { withFloatModel } from "../../tests/fixtures/float_model.ts";
import { writeTinyModel } from "../../tests/fixtures/tiny_model.ts";
import { quantize } from "../passes/quantize.ts";
import { openCheckpoint } from "../weights/checkpoint.ts";
import { decodeResidual } from "../weights/correction_reference.ts";
import { inventory, type Matrix } from "../weights/inventory.ts";
import { awq, haq, joint, type Quantizer } from "../weights/quantizer.ts";
import { dequantize } from "../weights/reference.ts";
import { SmoothedSource } from "../weights/smoothed.ts";
import type { StoredForms } from "../weights/window.ts";
import { matrixOf, valuesOf, type WeightSource } from "../weights/source.ts";
import { calibrate } from "./calibrate.ts";
import { type FittedWindow, fitWindows } from "./fit.ts";
import type { RowFilter } from "./moments.ts";
import { FloatWeights } from "./ops.ts";
import { calibrationPass, runChunk } from "./pass.ts";
import type { Statistics } from "./statistics.ts";
import type { Graph } from "../ir/graph.ts";

const WIDTH = 4;
const TEXT = {
  name: "text",
  sha256: "0".repeat(64),
  tokens: Int32Array.from({ length: 2000 }, (_, i) => i * i % 41),
};

interface Fitted {
  readonly graph: Graph;
  readonly source: WeightSource;
  readonly stored: SmoothedSource;
  readonly statistics: Statistics;
  readonly matrices: readonly Matrix[];
  readonly filters: ReadonlyMap<string, RowFilter>;
  readonly fitted: readonly FittedWindow[];
  /** A tensor that was written, in its parts. */
  tensor(name: string): Uint8Array[];
}

/** Fits a model with channels of very different sizes to a text. */
async function withFitted(
  quantizer: Quantizer,
  test: (fitted: Fitted) => void | Promise<void>,
  factors: StoredForms["factors"] = null,
) {
  using folder = temporary();
  const uneven = (name: string, values: Float32Array) => {
    if (/layernorm/.test(name)) values.forEach((_, j) => values[j]! *= 4 ** (j % 5 - 2));
    if (/(up|v)_proj/.test(name)) values.forEach((_, at) => values[at]! *= 3 ** (Math.floor(at / 50) % 4));
  };
  writeTinyModel(folder.path, { edit: uneven, heads: 6, kvHeads: 2 });
  await withFloatModel(folder.path, async (float, source) => {
    using checkpoint = openCheckpoint(folder.path);
    const sizes = { tokens: 50 * 20, window: 20, fisherTokens: 200, seed: 4, threads: 2 };
    const statistics = await calibrate({ ...sizes, checkpoint, graph: float, texts: [TEXT] });
    const graph = quantize(float, { weights: "q3", head: "q8", group: 32 });
    const needs = inventory(graph);
    const matrices = needs.matrices.filter((m) => m.window !== undefined);
    const filters = new Map(matrices.map(({ window, inputs }) => {
      const norms = Float32Array.from({ length: inputs }, (_, j) => 1 + j % 3);
      return [window!, { norms, threshold: 1.5, most: 9 }];
    }));
    const written = new Map<string, Uint8Array[]>();
    const sink = {
      write: (name: string, ...parts: Uint8Array[]) =>
        void written.set(name, parts.map((part) => part.slice())),
      read: (name: string) => written.get(name)![0]!,
    };
    const stored = new SmoothedSource(source);
    const fitted = await fitWindows(needs, sink, {
      graph,
      source,
      stored,
      statistics,
      quantizer,
      filters,
      forms: { residual: { width: WIDTH }, factors },
      ranks: new Map(),
      whitening: "full",
      threads: 2,
    });
    const tensor = (name: string) => written.get(name)!;
    await test({ graph, source, stored, statistics, matrices, filters, fitted, tensor });
  });
}

Deno.test("smoothed weights compute what the model computes, and every window is smoothed", async () => {
  for (const quantizer of [awq(2), haq(2), joint(2)]) {
    await withFitted(quantizer, ({ graph, source, stored, fitted }) => {
      const text = { tokens: TEXT.tokens.subarray(0, 30), window: 30 };
      const logits = (weights: WeightSource) =>
        runChunk(graph, new FloatWeights(weights), text, 2).values.get(graph.outputs[0]!)!;
      const [expected, found] = [logits(source), logits(stored)];
      const size = Math.max(...expected.map(Math.abs));
      const error = Math.max(...expected.map((value, at) => Math.abs(value - found[at]!)));
      assert.ok(error < 1e-5 * size, `${quantizer.name}: ${error} of ${size}`);
      const count = fitted.filter(({ smoothing }) => smoothing?.scales).length;
      assert.ok(count >= 6, `${quantizer.name}: ${count} of ${fitted.length} are smoothed`);
    });
  }
});

Deno.test("beside factors, which do not follow scales, joint smooths nothing", () =>
  withFitted(joint(2), ({ fitted, stored, matrices }) => {
    assert.ok(fitted.length > 0 && fitted.every(({ smoothing }) => smoothing === undefined));
    assert.ok(
      matrices.every(({ sections }) => sections.every((ref) => stored.divisorsOf(ref) === undefined)),
    );
  }, { dtype: "i8", maxRank: 2 }));

/** The inputs of all windows, under these weights. */
async function inputsOf({ graph, statistics }: Fitted, source: WeightSource) {
  const inputs = new Map<string, Float32Array>();
  const observe = (window: string, x: Float32Array) => void inputs.set(window, x.slice());
  await calibrationPass({ graph, source, text: statistics.text, threads: 2, observe });
  return inputs;
}

Deno.test("what was written, rows too, leaves of a smoothed window the loss that is predicted", () =>
  withFitted(haq(2), async (all) => {
    const [plain, smoothed] = [await inputsOf(all, all.source), await inputsOf(all, all.stored)];
    const floats = (name: string) => {
      const [bytes] = all.tensor(name);
      return new Float32Array(bytes!.buffer, bytes!.byteOffset, bytes!.byteLength / 4);
    };
    for (const [i, matrix] of all.matrices.entries()) {
      const { window = "", inputs, rows, format } = matrix;
      const residual = {
        codes: all.tensor(`${window}.residual.codes`)[0]!,
        outputScale: floats(`${window}.residual.output_scale`),
        channelScale: floats(`${window}.residual.channel_scale`),
        norm: floats(`${window}.residual.norm`),
      };
      const row = decodeResidual(residual, WIDTH, rows, inputs);
      const [x, s] = [plain.get(window)!, smoothed.get(window)!];
      const { threshold, most } = all.filters.get(window)!;
      const tokens = x.length / inputs;
      const { fisher } = all.statistics.windows.get(window)!;
      const sections = matrix.sections.map((ref, section) => ({
        outputs: ref.outputs,
        firstRow: matrix.firstRows[section]!,
        weight: valuesOf(matrixOf(all.source, ref, inputs)),
        packed: dequantize(all.tensor(`${matrix.name}.packed`)[section]!, format!, ref.outputs, inputs),
        divisors: all.stored.divisorsOf(ref),
      }));
      let loss = 0;
      for (let t = 0; t < tokens; t++) {
        const score = (j: number) => Math.abs(s[t * inputs + j]!) * residual.norm[j]!;
        const chosen = Array.from({ length: inputs }, (_, j) => j).filter((j) => score(j) >= threshold)
          .sort((a, b) => score(b) - score(a)).slice(0, most);
        for (const { outputs, firstRow, weight, packed, divisors } of sections) {
          for (let o = 0; o < outputs; o++) {
            const output = firstRow + o;
            let wanted = 0, found = 0;
            for (let j = 0; j < inputs; j++) {
              wanted += weight[o * inputs + j]! * x[t * inputs + j]!;
              found += packed[o * inputs + j]! * s[t * inputs + j]!;
            }
            for (const j of chosen) found += row[output * inputs + j]! * s[t * inputs + j]!;
            loss += fisher[output]! * (wanted - found * (divisors?.[o] ?? 1)) ** 2 / 2 / tokens;
          }
        }
      }
      const { corrected, alone } = all.fitted[i]!;
      assert.ok(corrected < alone, window);
      assert.ok(Math.abs(loss - corrected) < 0.01 * corrected, `${window}: ${loss}, predicted ${corrected}`);
    }
  }));
