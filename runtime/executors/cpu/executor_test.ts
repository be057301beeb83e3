/** Requests that the cpu executor refuses, a full cache, and keys and values that it cannot hold. */
import assert from "node:assert/strict";
import type { Bundle } from "../../../compiler/bundle.ts";
import { MOST_RUNS, PAGE_POSITIONS as PAGE } from "../../../compiler/memory.ts";
import { refusal } from "../../../tests/fixtures/errors.ts";
import { assertSameBits, logitsOf, stepOne } from "../../../tests/fixtures/steps.ts";
import type { TinyModel } from "../../../tests/fixtures/tiny_model.ts";
import { RandomModels, someTokens } from "../../../tests/parity/random_models.ts";
import type { ExecutorOptions, Run, Sequence } from "../../executor.ts";
import { type CpuExecutor, createCpuExecutor } from "./executor.ts";

const TINY: TinyModel = { context: 512 };
const Q4 = { weights: "q4", group: 32 } as const;

function open(bundle: Bundle, options: Partial<ExecutorOptions> = {}): CpuExecutor {
  return createCpuExecutor(bundle, { threads: 1, corrections: "auto", ...options });
}

Deno.test("requests that cannot be run are refused, each by its message, and change nothing", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(TINY, Q4);
  using cpu = open(bundle, { capacity: 64, contextLength: 100, cachePositions: 1000 });
  using other = open(bundle);
  const { vocabularySize } = cpu.model;
  using sequence = cpu.sequence();
  using second = cpu.sequence();
  stepOne(cpu, sequence, [1, 2, 3, 4], { logits: "none" });
  const free = cpu.freePositions;
  const run = (changes: Partial<Run> = {}): Run => (
    { sequence, position: 4, tokens: Int32Array.of(1), as: "decode", logits: "last", ...changes }
  );
  const closed = cpu.sequence();
  closed[Symbol.dispose]();
  using foreign = other.sequence();
  const made: Sequence = { length: 0, fork: () => made, [Symbol.dispose]() {} };
  const many = Array.from({ length: MOST_RUNS + 1 }, () => run({ sequence: cpu.sequence(), position: 0 }));
  const cases: readonly (readonly [RegExp, ...Run[]])[] = [
    [/^a step has 1 to 64 runs, found 0$/],
    [/^a step has 1 to 64 runs, found 65$/, ...many],
    [/^a step has one run of a sequence, found two$/, run(), run()],
    [/^a run needs at least one token$/, run({ tokens: new Int32Array(0) })],
    [/^a step of 65 tokens exceeds the executor's capacity of 64$/, run({ tokens: new Int32Array(65) })],
    [
      /^a step of 66 tokens exceeds the executor's capacity of 64$/,
      run({ tokens: new Int32Array(33) }),
      run({ sequence: second, position: 0, tokens: new Int32Array(33) }),
    ],
    [/^a run at position 5 leaves a hole: 4 tokens are cached$/, run({ position: 5 })],
    [/^a run at position -1 leaves a hole/, run({ position: -1 })],
    [/^a run at position 0.5 leaves a hole/, run({ position: 0.5 })],
    [/^a run at position NaN leaves a hole/, run({ position: NaN })],
    [
      new RegExp(`^token ${vocabularySize} at index 1 is outside the vocabulary of ${vocabularySize}$`),
      run({
        tokens: Int32Array.of(0, vocabularySize),
      }),
    ],
    [/^token -1 at index 0 is outside the vocabulary/, run({ tokens: Int32Array.of(-1) })],
    [
      /^a run names a sequence that is closed or of another executor$/,
      run({ sequence: closed, position: 0 }),
    ],
    [/^a run names a sequence that is closed or of another/, run(), run({ sequence: foreign, position: 0 })],
    [/^a run names a sequence that is closed or of another/, run({ sequence: made, position: 0 })],
    // One run that is sound does not make up for one that is not.
    [/leaves a hole/, run({ sequence: second, position: 0 }), run({ position: 5 })],
  ];
  for (const [message, ...runs] of cases) {
    assert.throws(() => cpu.step({ runs }), refusal("input", message));
    await assert.rejects(cpu.stepAsync({ runs }), refusal("input", message));
  }
  assert.throws(() => closed.fork(), refusal("input", /the sequence is closed/));
  assert.deepEqual([sequence.length, second.length, cpu.freePositions], [4, 0, free]);
  stepOne(cpu, sequence, new Int32Array(60), { logits: "none" });
  stepOne(cpu, sequence, new Int32Array(36), { logits: "none" });
  assert.throws(
    () => stepOne(cpu, sequence, [1]),
    refusal("input", /^101 tokens do not fit the context of 100: /),
  );
  assert.equal(sequence.length, 100);
});

Deno.test("limits that make no sense are refused", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(TINY, Q4);
  const refused = (options: Partial<ExecutorOptions>, message: RegExp) =>
    assert.throws(() => open(bundle, options), refusal("usage", message));
  const context = /^a context of .* tokens: expected 1 to 512, the longest .* was made for$/;
  for (const contextLength of [513, 0, -1, 1.5, NaN]) refused({ contextLength }, context);
  for (const capacity of [0, -1, 0.5]) refused({ capacity }, /^a step of .* tokens: expected at least 1$/);
  for (const cachePositions of [0, -64, NaN]) {
    refused({ cachePositions }, /^a cache of .* positions: expected at/);
  }
  for (const threads of [0, -1, 1.5, 4096]) {
    refused({ threads }, /^--threads .*: expected 1 to \d+ on this machine$/);
  }
  using cpu = open(bundle, { capacity: 4096 });
  assert.deepEqual([cpu.contextLength, cpu.capacity, cpu.freePositions], [512, 512, 512]);
});

Deno.test("a full cache is refused, leaves all sequences as they were, and has room when one is closed", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(TINY, Q4);
  using oracle = open(bundle);
  using cpu = open(bundle, { cachePositions: 2 * PAGE + 1 });
  assert.equal(cpu.freePositions, 3 * PAGE);
  const { vocabularySize } = cpu.model;
  const text = (seed: number) => someTokens(3 * PAGE, vocabularySize, seed);
  const lastOf = (seed: number, length: number) =>
    logitsOf(oracle, text(seed).subarray(0, length)).slice(-vocabularySize);
  const first = cpu.sequence(), second = cpu.sequence(), third = cpu.sequence();
  stepOne(cpu, first, text(1).subarray(0, PAGE + 1), { logits: "none" });
  stepOne(cpu, second, text(2).subarray(0, PAGE), { logits: "none" });
  const grow = (sequence: Sequence, seed: number, by = 1) => ({
    sequence,
    position: sequence.length,
    tokens: text(seed).subarray(sequence.length, sequence.length + by),
    as: "decode",
    logits: "last",
  } as const);
  const full = (positions: number) =>
    refusal(
      "input",
      new RegExp(
        `^the cache holds ${
          2 * PAGE + 1
        } positions of all sequences, and this step needs ${positions} more: ` +
          "close a sequence, or ask for a larger cache$",
      ),
    );
  assert.throws(() => cpu.step({ runs: [grow(second, 2)] }), full(PAGE));
  assert.throws(
    () => cpu.step({ runs: [grow(first, 1), grow(second, 2, PAGE + 1), grow(third, 3)] }),
    full(3 * PAGE),
  );
  await assert.rejects(cpu.stepAsync({ runs: [grow(first, 1, 64), grow(third, 3)] }), full(2 * PAGE));
  assert.deepEqual([first.length, second.length, third.length], [PAGE + 1, PAGE, 0]);
  assert.equal(cpu.freePositions, 0);
  // What fits goes on.
  assertSameBits(cpu.step({ runs: [grow(first, 1)] })[0]!, lastOf(1, PAGE + 2), "first");
  // So does a sequence that goes back.
  const back = { ...grow(second, 2), position: PAGE - 1, tokens: text(2).subarray(PAGE - 1, PAGE) };
  assertSameBits(cpu.step({ runs: [back] })[0]!, lastOf(2, PAGE), "second");
  // A fork takes nothing, but cannot write to what it shares.
  const fork = first.fork();
  assert.throws(() => cpu.step({ runs: [grow(fork, 1)] }), full(PAGE));
  first[Symbol.dispose]();
  assertSameBits(cpu.step({ runs: [grow(fork, 1)] })[0]!, lastOf(1, PAGE + 3), "fork");
  assert.throws(() => cpu.step({ runs: [grow(second, 2)] }), full(PAGE));
  fork[Symbol.dispose]();
  assert.equal(cpu.freePositions, 2 * PAGE);
  assertSameBits(cpu.step({ runs: [grow(second, 2)] })[0]!, lastOf(2, PAGE + 1), "second has room");
});

/**
 * A model in which token 7 alone is 1 in channel 0 of the residual stream, up to layer 1, whose keys (or values) that
 * channel makes too large.
 */
function overflowing(matrix: "k_proj" | "v_proj"): TinyModel {
  const hidden = 50;
  return {
    ...TINY,
    edit(name, values) {
      const channel = (row: number) => row * hidden;
      const rows = values.length / hidden;
      if (name === "model.embed_tokens.weight") {
        for (let token = 0; token < rows; token++) values[channel(token)] = token === 7 ? 1 : 0;
      } else if (/layers\.0\.(self_attn\.o_proj|mlp\.down_proj)/.test(name)) {
        values.fill(0, 0, values.length / hidden);
      } else if (name === `model.layers.1.self_attn.${matrix}.weight`) {
        for (let row = 0; row < rows; row++) values[channel(row)] = row === 3 ? 1e6 : 0;
      }
    },
  };
}

for (const [matrix, what] of [["k_proj", "key"], ["v_proj", "value"]] as const) {
  Deno.test(`a ${what} beyond f16 is an error that names its layer and position; other sequences go on`, async () => {
    using models = new RandomModels();
    using bundle = await models.compile(overflowing(matrix), {
      weights: "bf16",
      head: "bf16",
      correct: "none",
    });
    using oracle = open(bundle);
    for (const threads of [1, 2]) {
      using cpu = open(bundle, { threads, cachePositions: 1024 });
      using first = cpu.sequence();
      using second = cpu.sequence();
      stepOne(cpu, first, [1, 2, 3], { logits: "none" });
      stepOne(cpu, second, [4, 5], { logits: "none" });
      const refused = (position: number) =>
        refusal(
          "bundle",
          new RegExp(`^a ${what} of layer 1 at position ${position} is beyond what the cache holds`),
        );
      for (const as of ["decode", "prefill"] as const) {
        const runs: Run[] = [
          { sequence: first, position: 3, tokens: Int32Array.of(4, 5, 6), as, logits: "last" },
          { sequence: second, position: 2, tokens: Int32Array.of(1, 2, 7, 3, 7), as, logits: "last" },
        ];
        assert.throws(() => cpu.step({ runs }), refused(4));
        await assert.rejects(cpu.stepAsync({ runs }), refused(4));
        assert.throws(() => cpu.step({ runs: runs.toReversed() }), refused(4));
        assert.deepEqual([first.length, second.length], [3, 2]);
      }
      // In a group of its own, too: what was computed before it does not count.
      const runs: Run[] = [
        { sequence: first, position: 3, tokens: Int32Array.of(9), as: "decode", logits: "last" },
        { sequence: second, position: 1, tokens: Int32Array.of(7), as: "prefill", logits: "last" },
      ];
      assert.throws(() => cpu.step({ runs }), refused(1));
      assert.deepEqual([first.length, second.length], [3, 1]);
      const last = (...tokens: number[]) =>
        logitsOf(oracle, Int32Array.from(tokens)).slice(-cpu.model.vocabularySize);
      assertSameBits(stepOne(cpu, first, [8]), last(1, 2, 3, 8), "first");
      assertSameBits(stepOne(cpu, second, [9]), last(4, 9), "second");
    }
  });
}
