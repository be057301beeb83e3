/** Steps beside the event loop: what goes on meanwhile, and how they are aborted. */
import assert from "node:assert/strict";
import process from "node:process";
import { refusal } from "../../../tests/fixtures/errors.ts";
import { assertSameBits, stepOne } from "../../../tests/fixtures/steps.ts";
import type { TinyModel } from "../../../tests/fixtures/tiny_model.ts";
import { RandomModels, someTokens } from "../../../tests/parity/random_models.ts";
import type { Run, Sequence } from "../../executor.ts";
import { Session } from "../../session.ts";
import { createCpuExecutor } from "./executor.ts";

const Q4 = { weights: "q4", group: 32 } as const;

/** Large enough that a step of 512 tokens takes more than a hundred milliseconds. */
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
  using cpu = createCpuExecutor(bundle, { threads: 2, corrections: "async", capacity: 1024 });
  const tokens = someTokens(512, cpu.model.vocabularySize);
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
    assert.deepEqual([sequence.length, other.length], [512, 0]);
    assertSameBits(found, cpu.step({ runs: [prefillOf(sequence, tokens)] })[0]!, "step");
    cpu.step(second);
  } finally {
    clearInterval(timer);
  }
});

Deno.test("while a step runs its sequences can be forked and closed", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(LARGE, Q4);
  using cpu = createCpuExecutor(bundle, { threads: 2, corrections: "inline", cachePositions: 8192 });
  const all = cpu.freePositions;
  const tokens = someTokens(512, cpu.model.vocabularySize);
  const expected = cpu.sequence();
  const before = stepOne(cpu, expected, tokens.subarray(0, 80), { as: "prefill", logits: "last" }).slice();
  const [kept, closed] = [expected.fork(), expected.fork()];
  const runs = [kept, closed].map((sequence) => ({
    ...prefillOf(sequence, tokens.subarray(80)),
    position: 80,
  }));
  const running = cpu.stepAsync({ runs: [runs[0]!] });
  const fork = kept.fork();
  assert.equal(fork.length, 80);
  const logits = (await running)[0]!.slice();
  assert.equal(kept.length, 512);
  assertSameBits(
    stepOne(cpu, expected, tokens.subarray(80), { as: "prefill", logits: "last" }),
    logits,
    "step",
  );
  // The fork has what was there when it was made.
  const last = { position: 79, as: "prefill", logits: "last" } as const;
  assertSameBits(stepOne(cpu, fork, tokens.subarray(79, 80), last), before, "fork");

  const second = cpu.stepAsync({ runs: [runs[1]!] });
  closed[Symbol.dispose]();
  assertSameBits((await second)[0]!, logits, "closed meanwhile");
  assert.equal(closed.length, 0);
  for (const sequence of [fork, kept, expected]) sequence[Symbol.dispose]();
  assert.equal(cpu.freePositions, all);
});

/** How long a promise took to be rejected with the reason of the signal, from when `controller` was aborted. */
async function secondsToEnd(controller: AbortController, running: Promise<unknown>): Promise<number> {
  let aborted = Infinity;
  controller.signal.addEventListener("abort", () => aborted = performance.now());
  await assert.rejects(running, (error) => error === controller.signal.reason);
  return (performance.now() - aborted) / 1000;
}

/** Milliseconds where nothing else runs; busy machines and another library (one with sanitizers) take longer. */
const MOST_SECONDS = process.env["HCINFER_LIBRARY"] ? 20 : 1;

Deno.test("an aborted step ends at once where its runs began, and the next ones are what they were", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(LARGE, Q4);
  const tokens = someTokens(4096, bundle.plan.model.vocabularySize);
  for (const corrections of ["inline", "async"] as const) {
    using cpu = createCpuExecutor(bundle, { threads: 2, corrections, capacity: 2048, cachePositions: 8192 });
    using prompt = cpu.sequence();
    using decoding = cpu.sequence();
    stepOne(cpu, prompt, tokens.subarray(0, 100), { as: "prefill", logits: "none" });
    stepOne(cpu, decoding, tokens.subarray(0, 10), { logits: "none" });
    // The decoded token is computed before the prompt, in which the signal comes.
    const runs = (of: Sequence, beside: Sequence): Run[] => [
      { ...prefillOf(of, tokens.subarray(0, 600)), position: 90 },
      { sequence: beside, position: 10, tokens: Int32Array.of(1), as: "decode", logits: "last" },
    ];
    using otherPrompt = prompt.fork();
    using otherDecoding = decoding.fork();
    const began = performance.now();
    const expected = cpu.step({ runs: runs(otherPrompt, otherDecoding) }).map((logits) => logits.slice());
    const milliseconds = performance.now() - began;

    const controller = new AbortController();
    const { signal } = controller;
    setTimeout(() => controller.abort(new Error("enough")), milliseconds / 3);
    const seconds = await secondsToEnd(controller, cpu.stepAsync({ runs: runs(prompt, decoding) }, signal));
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
  using cpu = createCpuExecutor(bundle, { threads: 2, corrections: "inline", cachePositions: 8192 });
  const tokens = someTokens(4096, cpu.model.vocabularySize);
  using session = new Session(cpu);
  const controller = new AbortController();
  const progress: number[] = [];
  const onProgress = (done: number, total: number) => {
    assert.equal(total, 4096);
    if (progress.push(done) === 2) setTimeout(() => controller.abort(new Error("enough")), 5);
  };
  const running = session.prefill(tokens, { signal: controller.signal, onProgress });
  const seconds = await secondsToEnd(controller, running);
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
