import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../../compiler/errors.ts";
import { GraphBuilder } from "../../compiler/ir/build.ts";
import { moduleTensor, paddedOutputs } from "../../compiler/ir/naming.ts";
import { tensor } from "../../compiler/ir/types.ts";
import { PLAN_VERSION } from "../../compiler/plan.ts";
import { factorStride } from "../../compiler/weights/correction.ts";
import {
  decodeFactors,
  decodeResidual,
  encodeResidual,
} from "../../compiler/weights/correction_reference.ts";
import { dequantize, quantize } from "../../compiler/weights/reference.ts";
import { refusal } from "../../tests/fixtures/errors.ts";
import { stepOne } from "../../tests/fixtures/steps.ts";
import type { ExecutableBundle, ExecutorOptions, Sequence, StepKind } from "../executor.ts";
import { createReferenceExecutor } from "./reference.ts";

const INPUTS = 40;
const SECTIONS = [
  { ...moduleTensor("model.layers.0.a_proj"), outputs: 5 },
  { ...moduleTensor("model.layers.0.b_proj"), outputs: 18 },
];
const WINDOW = "0.ab";
const ROWS = 6; // of the embedding
const RANK = 3;
const FORMAT = { kind: "q3", group: 32 } as const;
const BF16 = { kind: "bf16" } as const;
const { total: OUTPUTS, firstColumn } = paddedOutputs(SECTIONS);

/** Deterministic numbers in [-1, 1]. */
function noise(length: number, seed: number): Float64Array {
  return Float64Array.from({ length }, (_, i) => Math.sin(12.9898 * (i + 1) + 78.233 * seed));
}

const bytes = (array: Float32Array | Int8Array) => new Uint8Array(array.buffer);

/** E where a padding row of the window is zero. */
function withPadding(matrix: Float64Array): Float64Array {
  SECTIONS.forEach(({ outputs }, i) => {
    matrix.fill(0, (firstColumn[i]! + outputs) * INPUTS, (firstColumn[i + 1] ?? OUTPUTS) * INPUTS);
  });
  return matrix;
}

const embedding = dequantize(quantize(noise(ROWS * INPUTS, 1), BF16, ROWS, INPUTS), BF16, ROWS, INPUTS);
const packed = quantize(withPadding(noise(OUTPUTS * INPUTS, 2)), FORMAT, OUTPUTS, INPUTS);
const weight = dequantize(packed, FORMAT, OUTPUTS, INPUTS);
const stored = encodeResidual(withPadding(noise(OUTPUTS * INPUTS, 3)), OUTPUTS, INPUTS, 4);
const residual = decodeResidual(stored, 4, OUTPUTS, INPUTS);
const factors = {
  a: bytes(Int8Array.from(noise(RANK * factorStride(INPUTS), 4), (v) => 127 * v)),
  b: bytes(Int8Array.from(noise(RANK * factorStride(OUTPUTS), 5), (v) => 127 * v)),
  aScale: Float32Array.of(0.01, 0.005, 0.002),
  bScale: Float32Array.of(1, 0.5, 0.25),
};

type Corrections = readonly ("sparse" | "low_rank")[];

/** embedding -> one linear of two ragged sections -> corrections -> section `output`. */
function bundle(corrections: Corrections, output: number, channels = 7, rank = 2): ExecutableBundle {
  const build = new GraphBuilder("test");
  const tokens = build.input("tokens", tensor("i32", "T"));
  build.input("positions", tensor("i32", "T"));
  const [x] = build.node("embedding", [tokens], {
    ...moduleTensor("model.embed"),
    rows: ROWS,
    width: INPUTS,
  });
  const sections = build.node("linear", [x!], { weights: SECTIONS, window: WINDOW, format: FORMAT });
  const deltas = corrections.map((kind) =>
    kind === "sparse"
      ? build.node("sparse_residual", [x!], { window: WINDOW, channels, outputs: OUTPUTS, width: 4 })[0]!
      : build.node("low_rank", [x!], { window: WINDOW, rank, outputs: OUTPUTS, dtype: "i8" })[0]!
  );
  const merged = deltas.length === 0
    ? sections
    : build.node("merge", [...sections, ...deltas], { window: WINDOW, deltas: deltas.length, slack: 0 });
  const tensors: Record<string, Uint8Array> = {
    "model.embed.packed": quantize(embedding, BF16, ROWS, INPUTS),
    "ab.packed": packed,
    [`${WINDOW}.residual.codes`]: stored.codes,
    [`${WINDOW}.residual.output_scale`]: bytes(stored.outputScale),
    [`${WINDOW}.residual.channel_scale`]: bytes(stored.channelScale),
    [`${WINDOW}.residual.norm`]: bytes(stored.norm),
    [`${WINDOW}.factors.a`]: factors.a,
    [`${WINDOW}.factors.b`]: factors.b,
    [`${WINDOW}.factors.a_scale`]: bytes(factors.aScale),
    [`${WINDOW}.factors.b_scale`]: bytes(factors.bScale),
  };
  const section = ({ path, outputs }: typeof SECTIONS[number], firstRow: number) => (
    { path, firstRow, rows: outputs, relativeError: 0 }
  );
  return {
    plan: {
      version: PLAN_VERSION,
      model: {
        architecture: "test",
        name: "test",
        hiddenSize: INPUTS,
        layers: 1,
        heads: 1,
        kvHeads: 1,
        headDim: 2,
        vocabularySize: ROWS,
        contextLength: 32,
        stopTokens: [],
        bosToken: null,
        parameters: 1,
      },
      graph: build.finish([merged[output]!], "compensated"),
      weights: [{
        tensor: "model.embed.packed",
        format: "bf16",
        rows: ROWS,
        inputs: INPUTS,
        bytes: 1,
        sections: [section({ ...moduleTensor("model.embed"), outputs: ROWS }, 0)],
      }, {
        tensor: "ab.packed",
        format: "q3g32",
        rows: OUTPUTS,
        inputs: INPUTS,
        bytes: packed.length,
        sections: SECTIONS.map((s, i) => section(s, firstColumn[i]!)),
      }],
      vectors: {},
      windows: [{
        window: WINDOW,
        inputs: INPUTS,
        outputs: OUTPUTS,
        errorEnergy: 1,
        residual: { width: 4, bytes: 1 },
        factors: { dtype: "i8", maxRank: RANK, bytes: 1 },
      }],
      lanes: [],
      memory: { bytesPerToken: 0, offsets: {} },
      corrections: {
        mode: "inline",
        threads: 1,
        compensationThreads: 0,
        cause: "test",
        prefill: "cpu",
        prefillCause: "test",
      },
      provenance: {},
    },
    tensor: (name) => ({ dtype: "U8", shape: [], bytes: tensors[name]! }),
  };
}

type Options = { readonly as?: StepKind } & Partial<ExecutorOptions>;

/** Outputs of section `output` for one token. */
function run(corrections: Corrections, output: number, token: number, options: Options = {}, channels = 7) {
  using executor = createReferenceExecutor(bundle(corrections, output, channels), options);
  using sequence = executor.sequence();
  return stepOne(executor, sequence, [token], { as: options.as ?? "decode" });
}

/** x (sum of matrices)^T over the given inputs, for the rows of section `output`. */
function expected(output: number, token: number, terms: readonly [Float64Array, readonly number[]][]) {
  const { outputs } = SECTIONS[output]!;
  return Array.from({ length: outputs }, (_, o) => {
    let sum = 0;
    for (const [matrix, inputs] of terms) {
      for (const j of inputs) {
        sum += embedding[token * INPUTS + j]! * matrix[(firstColumn[output]! + o) * INPUTS + j]!;
      }
    }
    return sum;
  });
}

/** Equal up to the rounding of logits to f32. */
function close(actual: ArrayLike<number>, wanted: readonly number[]): void {
  assert.equal(actual.length, wanted.length);
  wanted.forEach((value, i) => {
    const error = Math.abs(actual[i]! - value);
    assert.ok(error <= 2 ** -24 * Math.abs(value) + 1e-12, `${actual[i]} is not ${value}`);
  });
}

const every = Array.from({ length: INPUTS }, (_, j) => j);
const lowRank = decodeFactors(factors, "i8", OUTPUTS, INPUTS, 2);

/** The definition: channels by |x_j| * norm_j, ties by lower index. */
function chosen(token: number, channels: number): number[] {
  const score = (j: number) => Math.abs(embedding[token * INPUTS + j]!) * stored.norm[j]!;
  return every.toSorted((a, b) => score(b) - score(a) || a - b).slice(0, channels);
}

Deno.test("corrections, off and on, as decode and as prefill, land in their sections", () => {
  for (const output of [0, 1]) {
    for (let token = 0; token < ROWS; token++) {
      const base: [Float64Array, number[]] = [weight, every];
      close(run([], output, token), expected(output, token, [base]));
      close(
        run(["sparse", "low_rank"], output, token, { corrections: "off" }),
        expected(output, token, [base]),
      );
      close(run(["low_rank"], output, token), expected(output, token, [base, [lowRank, every]]));
      close(
        run(["low_rank"], output, token, { as: "prefill" }),
        expected(output, token, [base, [lowRank, every]]),
      );
      const rows: [Float64Array, number[]] = [residual, chosen(token, 7)];
      close(run(["sparse"], output, token), expected(output, token, [base, rows]));
      close(
        run(["sparse"], output, token, { as: "prefill" }),
        expected(output, token, [base, [residual, every]]),
      );
      close(
        run(["low_rank", "sparse"], output, token, { corrections: "async" }),
        expected(output, token, [base, [lowRank, every], rows]),
      );
      // All channels chosen is the whole residual, in the same order.
      assert.deepEqual(
        run(["sparse"], output, token, {}, INPUTS),
        run(["sparse"], output, token, { as: "prefill" }),
      );
    }
  }
});

Deno.test("every token chooses its own channels; rows asked for are the rows of a full step", () => {
  const steps = fc.array(fc.integer({ min: 0, max: ROWS - 1 }), { minLength: 1, maxLength: 12 });
  fc.assert(fc.property(steps, fc.constantFrom("decode", "prefill"), (list, as) => {
    using executor = createReferenceExecutor(bundle(["sparse", "low_rank"], 1));
    const tokens = Int32Array.from(list);
    using sequence = executor.sequence();
    const all = stepOne(executor, sequence, tokens, { as });
    const width = SECTIONS[1]!.outputs;
    list.forEach((token, t) => {
      assert.deepEqual(
        all.subarray(t * width, (t + 1) * width),
        run(["sparse", "low_rank"], 1, token, { as }),
      );
    });
    const again = { position: 0, as } as const;
    assert.deepEqual(
      stepOne(executor, sequence, tokens, { ...again, logits: "last" }),
      all.subarray(-width),
    );
    assert.equal(stepOne(executor, sequence, tokens, { ...again, logits: "none" }).length, 0);
  }));
});

Deno.test("steps that cannot be run are refused", () => {
  using executor = createReferenceExecutor(bundle([], 0), { capacity: 4, contextLength: 6 });
  using sequence = executor.sequence();
  const step = (position: number, ...tokens: number[]) =>
    stepOne(executor, sequence, tokens, { position, logits: "none" });
  const refused = (error: unknown) => error instanceof HcinferError && error.kind === "input";
  step(0, 1, 2, 3, 4);
  assert.throws(() => step(4), refused);
  assert.throws(() => step(0, 1, 1, 1, 1, 1), refused);
  assert.throws(() => step(4, 1, 1, 1), refused);
  assert.throws(() => step(5, 1), refused);
  assert.throws(() => step(-1, 1), refused);
  assert.throws(() => step(0.5, 1), refused);
  assert.throws(() => step(0, ROWS), refused);
  assert.throws(() => step(0, -1), refused);
  step(2, 1);
  assert.throws(() => step(4, 1), refused); // 2 forgot what came after it
  step(3, 1, 1, 1);
});

Deno.test("a plan without lanes for corrections, and one asked for none, compute the backbone alone", () => {
  const plain = run([], 0, 2);
  assert.deepEqual(run(["sparse"], 0, 2, { corrections: "off" }), plain);
  assert.notDeepEqual(run(["sparse"], 0, 2), plain);
});

function closed(sequence: Sequence): Sequence {
  sequence[Symbol.dispose]();
  return sequence;
}

Deno.test("several sequences in one step are computed as each alone", () => {
  using executor = createReferenceExecutor(bundle(["sparse", "low_rank"], 1));
  using first = executor.sequence();
  using second = executor.sequence();
  using alone = executor.sequence();
  const runs = [
    { sequence: first, position: 0, tokens: Int32Array.of(1, 2), as: "prefill", logits: "all" },
    { sequence: second, position: 0, tokens: Int32Array.of(3), as: "decode", logits: "last" },
  ] as const;
  const [a, b] = executor.step({ runs });
  assert.deepEqual(a, stepOne(executor, alone, [1, 2], { as: "prefill" }));
  assert.deepEqual(b, stepOne(executor, alone, [3], { position: 0 }));
  assert.deepEqual([first.length, second.length, alone.length], [2, 1, 1]);
  using other = createReferenceExecutor(bundle(["sparse", "low_rank"], 1));
  for (const sequence of [other.sequence(), closed(executor.sequence())]) {
    const more = [{ ...runs[1], position: 1 }, { ...runs[1], sequence }];
    assert.throws(() => executor.step({ runs: more }), refusal("input", /closed or of another executor/));
  }
  assert.equal(second.length, 1);
});
