/** What the cpu executor promises beside numbers: refusals, a full cache, aborts, overflows, memory, threads. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import type { Bundle } from "../../../compiler/bundle.ts";
import { type ErrorKind, HcinferError } from "../../../compiler/errors.ts";
import { predictPlan } from "../../../compiler/inspect.ts";
import { MOST_RUNS, PAGE_POSITIONS as PAGE } from "../../../compiler/memory.ts";
import { splitThreads } from "../../../compiler/plan.ts";
import { PROFILES } from "../../../compiler/profile.ts";
import { timelineOf } from "../../../compiler/timeline.ts";
import { assertSameBits, logitsOf, stepOne } from "../../../tests/fixtures/steps.ts";
import type { TinyModel } from "../../../tests/fixtures/tiny_model.ts";
import { RandomModels, someTokens } from "../../../tests/parity/random_models.ts";
import type { ExecutorOptions, Run, Sequence } from "../../executor.ts";
import { Session } from "../../session.ts";
import { createNullExecutor } from "../null.ts";
import { type CpuExecutor, createCpuExecutor } from "./executor.ts";

const TINY: TinyModel = { context: 512 };
const Q4 = { weights: "q4", group: 32 } as const;

function open(bundle: Bundle, options: Partial<ExecutorOptions> = {}): CpuExecutor {
  return createCpuExecutor(bundle, { threads: 1, corrections: "auto", ...options });
}

/** A check for `assert.throws` and `assert.rejects`. */
function refusal(kind: ErrorKind, message: RegExp): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof HcinferError, `${error}`);
    assert.equal(error.kind, kind);
    assert.match(error.message, message);
    return true;
  };
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

/** Large enough that a step of 1,024 tokens takes a few hundred milliseconds. */
const LARGE: TinyModel = {
  hidden: 384,
  heads: 6,
  kvHeads: 6,
  headDim: 64,
  inner: 1024,
  layers: 4,
  vocabulary: 300,
  context: 4096,
};

function prefillOf(sequence: Sequence, tokens: Int32Array): Run {
  return { sequence, position: 0, tokens, as: "prefill", logits: "last" };
}

Deno.test("stepAsync leaves the event loop free, refuses a second step, and computes what step does", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(LARGE, Q4);
  using cpu = open(bundle, { threads: 2, corrections: "async", capacity: 1024 });
  const tokens = someTokens(1024, cpu.model.vocabularySize);
  using sequence = cpu.sequence();
  using other = cpu.sequence();
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  try {
    const running = cpu.stepAsync({ runs: [prefillOf(sequence, tokens)] });
    const second = { runs: [prefillOf(other, tokens.subarray(0, 3))] };
    const busy = refusal("input", /^a step is running: wait until it has ended$/);
    assert.throws(() => cpu.step(second), busy);
    await assert.rejects(cpu.stepAsync(second), busy);
    const found = (await running)[0]!.slice();
    assert.ok(ticks > 0, "timers fire while a step runs");
    assert.deepEqual([sequence.length, other.length], [1024, 0]);
    assertSameBits(found, cpu.step({ runs: [prefillOf(sequence, tokens)] })[0]!, "step");
    cpu.step(second);
  } finally {
    clearInterval(timer);
  }
});

/** How long a promise took to be rejected with the reason of the signal, from when `controller` was aborted. */
async function secondsToEnd(controller: AbortController, running: Promise<unknown>): Promise<number> {
  let aborted = Infinity;
  controller.signal.addEventListener("abort", () => aborted = performance.now());
  await assert.rejects(running, (error) => error === controller.signal.reason);
  return (performance.now() - aborted) / 1000;
}

const MOST_SECONDS = 0.1;

Deno.test("an aborted step ends within 100 ms where its runs began, and the next ones are what they were", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(LARGE, Q4);
  const tokens = someTokens(4096, bundle.plan.model.vocabularySize);
  for (const corrections of ["inline", "async"] as const) {
    using cpu = open(bundle, { threads: 2, corrections, capacity: 2048, cachePositions: 8192 });
    using prompt = cpu.sequence();
    using decoding = cpu.sequence();
    stepOne(cpu, prompt, tokens.subarray(0, 100), { as: "prefill", logits: "none" });
    stepOne(cpu, decoding, tokens.subarray(0, 10), { logits: "none" });
    // The decoded token is computed before the prompt, in which the signal comes.
    const runs = (of: Sequence, beside: Sequence): Run[] => [
      { ...prefillOf(of, tokens.subarray(0, 2000)), position: 90 },
      { sequence: beside, position: 10, tokens: Int32Array.of(1), as: "decode", logits: "last" },
    ];
    using otherPrompt = prompt.fork();
    using otherDecoding = decoding.fork();
    const began = performance.now();
    const expected = cpu.step({ runs: runs(otherPrompt, otherDecoding) }).map((logits) => logits.slice());
    const milliseconds = performance.now() - began;

    const controller = new AbortController();
    const { signal } = controller;
    const timer = setTimeout(() => controller.abort(new Error("enough")), milliseconds / 3);
    const seconds = await secondsToEnd(controller, cpu.stepAsync({ runs: runs(prompt, decoding) }, signal));
    clearTimeout(timer);
    assert.ok(seconds < MOST_SECONDS, `${corrections}: ${seconds} s`);
    assert.deepEqual([prompt.length, decoding.length], [90, 10]);
    // A signal that has aborted before keeps the step from beginning.
    await assert.rejects(cpu.stepAsync({ runs: runs(prompt, decoding) }, signal), /enough/);
    assert.deepEqual([prompt.length, decoding.length], [90, 10]);

    const again = await cpu.stepAsync({ runs: runs(prompt, decoding) }, new AbortController().signal);
    again.forEach((logits, i) => assertSameBits(logits, expected[i]!, `${corrections}, run ${i}`));
  }
});

Deno.test("a session's long prompt says how far it is, and stops within 100 ms", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(LARGE, Q4);
  using cpu = open(bundle, { threads: 2, corrections: "inline", cachePositions: 8192 });
  const tokens = someTokens(4096, cpu.model.vocabularySize);
  using session = new Session(cpu);
  const controller = new AbortController();
  const progress: number[] = [];
  let timer = 0;
  const onProgress = (done: number, total: number) => {
    assert.equal(total, 4096);
    if (progress.push(done) === 2) timer = setTimeout(() => controller.abort(new Error("enough")), 5);
  };
  const running = session.prefill(tokens, { signal: controller.signal, onProgress });
  const seconds = await secondsToEnd(controller, running);
  clearTimeout(timer);
  assert.ok(seconds < MOST_SECONDS, `${seconds} s`);
  assert.ok(progress.length >= 2 && progress.length < 8, `${progress}`);
  assert.deepEqual(progress, progress.map((_, n) => 512 * (n + 1)));
  assert.equal(session.position, progress.at(-1));
  // It goes on from there.
  const end = session.position + 600;
  const logits = (await session.prefill(tokens.subarray(session.position, end))).slice();
  using whole = new Session(cpu, { chunk: 300 });
  assertSameBits(logits, await whole.prefill(tokens.subarray(0, end)), "after the abort");
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

Deno.test("its memory is what inspect predicts and the null executor reports, to the byte", async () => {
  using models = new RandomModels();
  for (const correct of ["none", "both"] as const) {
    using bundle = await models.compile(TINY, { ...Q4, correct });
    const { plan } = bundle;
    for (const limits of [{}, { capacity: 33, contextLength: 200 }, { capacity: 1, cachePositions: 1000 }]) {
      using cpu = open(bundle, limits);
      const options = { threads: 1, corrections: "auto", ...limits } as const;
      assert.deepEqual(createNullExecutor(plan, options).memory, cpu.memory);
      assert.deepEqual(predictPlan(plan, limits).memory, cpu.memory.bytes);
    }
    // Weights and corrections are the file's, but for its header and the padding between tensors.
    using cpu = open(bundle);
    const { weights, corrections } = cpu.memory.bytes;
    const rest = bundle.mapping.byteLength - weights - corrections;
    assert.ok(rest > 0 && rest < 0.25 * bundle.mapping.byteLength, `${rest} of ${bundle.mapping.byteLength}`);
  }
});

/** Bytes of this process's address space. */
function mapped(): number {
  return 4096 * Number(readFileSync("/proc/self/statm", "utf8").split(" ")[0]);
}

Deno.test({
  name: "it allocates what its memory says, and gives it back",
  ignore: !existsSync("/proc/self/statm"),
  fn: async () => {
    using models = new RandomModels();
    using bundle = await models.compile({ context: 4096, kvHeads: 3, vocabulary: 500 }, Q4);
    // Too large a cache to be mistaken for anything else; it is mapped, not touched.
    const options = { cachePositions: 2 ** 20, contextLength: 4096, capacity: 4096 };
    open(bundle, options)[Symbol.dispose]();
    const before = mapped();
    const cpu = open(bundle, options);
    const { weights: _, corrections: __, ...own } = cpu.memory.bytes;
    const expected = Object.values(own).reduce((sum, bytes) => sum + bytes, 0);
    const during = mapped() - before;
    cpu[Symbol.dispose]();
    const after = mapped() - before;
    assert.ok(expected > 2 ** 28);
    // Scratch of the threads, and what JavaScript takes meanwhile.
    const slack = 2 ** 23;
    assert.ok(Math.abs(during - expected) < slack, `${during} bytes are mapped, ${expected} were expected`);
    assert.ok(Math.abs(after) < slack, `${after} bytes are left`);
  },
});

Deno.test("lanes have the threads of the plan's split, here, in the timeline and in inspect", async () => {
  using models = new RandomModels();
  for (const profile of [PROFILES["generic-2-core"], PROFILES["generic-8-core"]]) {
    using bundle = await models.compile(TINY, { ...Q4, profile });
    const { plan } = bundle;
    for (let threads = 1; threads <= 8; threads++) {
      using cpu = open(bundle, { threads, corrections: "async" });
      const { backbone, compensation } = splitThreads(plan.corrections, threads);
      const expected = threads === 1 ? [1] : [backbone, compensation];
      assert.deepEqual(cpu.threads, expected);
      assert.equal(cpu.mode, threads === 1 ? "inline" : "async");
      const { lanes } = timelineOf(plan, cpu.mode, { profile, threads });
      assert.deepEqual(lanes.map((lane) => lane.threads), expected);
      const predicted = predictPlan(plan, { threads }).modes.find(({ mode }) => mode === cpu.mode);
      assert.deepEqual(predicted?.lanes.map((lane) => lane.threads), expected);
      using auto = open(bundle, { threads });
      assert.equal(auto.mode, predictPlan(plan, { threads }).defaultMode);
    }
    assert.equal(
      splitThreads(plan.corrections, profile.cpu.cores).compensation,
      plan.corrections.compensationThreads,
    );
  }
});
