/** What goes wrong on a GPU, on the simulator: nothing hangs, memory comes back, and the next run is clean. */
import assert from "node:assert/strict";
import { Context } from "../../../ffi/cuda/context.ts";
import { Driver } from "../../../ffi/cuda/driver.ts";
import { environment } from "../../../ffi/cuda/sim/tests/fixture.ts";
import { refusal } from "../../../tests/fixtures/errors.ts";
import { cudaExecutor, onGpu } from "../../../tests/fixtures/gpu.ts";
import { assertSameBits, logitsOf, stepOne } from "../../../tests/fixtures/steps.ts";
import { CASES, RandomModels, someTokens } from "../../../tests/parity/random_models.ts";
import type { Bundle } from "../../../compiler/bundle.ts";
import type { Run } from "../../executor.ts";

const LIMITS = { contextLength: 64, capacity: 40 };
const { shape: SHAPE, ...BOTH } = CASES.find(({ correct }) => correct === "both")!;

async function withBundle(test: (bundle: Bundle, tokens: Int32Array) => unknown): Promise<void> {
  using models = new RandomModels();
  using bundle = await models.compile(SHAPE, BOTH);
  await test(bundle, someTokens(40, bundle.plan.model.vocabularySize));
}

Deno.test("steps beside the event loop compute what others do, in every kind", () =>
  withBundle(async (bundle, tokens) => {
    for (const prefill of ["none", "cpu", "stream"] as const) {
      using cuda = cudaExecutor(onGpu(bundle, { limits: LIMITS, prefill }), LIMITS);
      for (const as of ["decode", "prefill"] as const) {
        using sequence = cuda.sequence();
        const run: Run = { sequence, position: 0, tokens, as, logits: "all" };
        let ticks = 0;
        const timer = setInterval(() => ticks++, 1);
        const found = (await cuda.stepAsync({ runs: [run] }))[0]!.slice();
        clearInterval(timer);
        assert.ok(ticks > 0, "timers fire while a step runs");
        assertSameBits(found, cuda.step({ runs: [run] })[0]!, `${as}, ${prefill}`);
      }
    }
  }));

Deno.test("a step of more launches than the driver's queue holds ends: the CPU's lane runs while they are ordered", () =>
  withBundle(async (bundle, tokens) => {
    using _ = environment({ CUDA_SIM_QUEUE: "4" });
    using cuda = cudaExecutor(onGpu(bundle, { limits: LIMITS, prefill: "cpu" }), {
      ...LIMITS,
      patience: 5000,
    });
    for (const as of ["decode", "prefill"] as const) {
      using sequence = cuda.sequence();
      const run: Run = { sequence, position: 0, tokens, as, logits: "all" };
      const logits = (await cuda.stepAsync({ runs: [run] }))[0]!.slice();
      assert.ok(logits.every(Number.isFinite));
      assertSameBits(cuda.step({ runs: [run] })[0]!, logits, as);
    }
  }));

Deno.test("a step that wants more rows of logits gets room for them, and recorded steps write there, too", async () => {
  using models = new RandomModels();
  using bundle = await models.compile({ ...SHAPE, context: 160 }, BOTH);
  const limits = { contextLength: 160, capacity: 160 };
  using cuda = cudaExecutor(onGpu(bundle, { limits }), limits);
  const tokens = someTokens(100, bundle.plan.model.vocabularySize);
  using sequence = cuda.sequence();
  const first = stepOne(cuda, sequence, tokens.subarray(0, 1)).slice();
  stepOne(cuda, sequence, tokens.subarray(1));
  assertSameBits(stepOne(cuda, sequence, tokens.subarray(0, 1), { position: 0 }), first, "after it grew");
});

Deno.test("a lane that does not answer in time is an error, not a hang; the device stays usable", () =>
  withBundle((bundle, tokens) => {
    const placed = onGpu(bundle, { limits: LIMITS });
    using calm = cudaExecutor(placed, LIMITS);
    const expected = logitsOf(calm, tokens);
    // No CPU answers within a nanosecond.
    using hasty = cudaExecutor(placed, { ...LIMITS, patience: 1e-6 });
    const lost = refusal("environment", /waited 0.000001 ms in vain for (the CPU's lane|the GPU)/);
    for (let n = 0; n < 3; n++) assert.throws(() => logitsOf(hasty, tokens), lost);
    // What needs nobody else still runs there, and the counters of blocks are as they were.
    using sequence = hasty.sequence();
    assert.equal(sequence.length, 0);
    assertSameBits(logitsOf(calm, tokens), expected, "the executor beside it");
  }));

Deno.test("an aborted step ends where its run began, and the next is what it was", () =>
  withBundle(async (bundle, tokens) => {
    const limits = { ...LIMITS, cachePositions: 192 };
    for (const as of ["decode", "prefill"] as const) {
      using cuda = cudaExecutor(onGpu(bundle, { limits, prefill: "cpu" }), limits);
      using sequence = cuda.sequence();
      stepOne(cuda, sequence, tokens.subarray(0, 5), { as, logits: "none" });
      const run: Run = { sequence, position: 5, tokens: tokens.subarray(5), as, logits: "all" };
      using other = sequence.fork();
      const expected = cuda.step({ runs: [{ ...run, sequence: other }] })[0]!.slice();
      for (let n = 0; n < 5; n++) {
        const controller = new AbortController();
        setTimeout(() => controller.abort(new Error("enough")), n);
        const ended = await cuda.stepAsync({ runs: [run] }, controller.signal).then(
          () => "done",
          (e: Error) => e.message,
        );
        assert.ok(ended === "enough" || ended === "done", ended);
        assert.equal(sequence.length, ended === "done" ? 40 : 5);
      }
      assertSameBits((await cuda.stepAsync({ runs: [run] }))[0]!, expected, `${as}, after aborts`);
    }
  }));

Deno.test("an executor that is closed while a step runs ends it", () =>
  withBundle(async (bundle, tokens) => {
    for (const as of ["decode", "prefill"] as const) {
      const cuda = cudaExecutor(onGpu(bundle, { limits: LIMITS }), LIMITS);
      const run: Run = { sequence: cuda.sequence(), position: 0, tokens, as, logits: "all" };
      const running = cuda.stepAsync({ runs: [run] });
      cuda[Symbol.dispose]();
      await assert.rejects(running, /the executor was closed while a step ran/);
    }
  }));

Deno.test("memory: a limit holds, and a lack says what was asked for; both give everything back", () =>
  withBundle((bundle, tokens) => {
    const placed = onGpu(bundle, { limits: LIMITS });
    let taken: number;
    {
      using cuda = cudaExecutor(placed, LIMITS);
      taken = cuda.deviceBytes;
      assert.equal(taken, cuda.memory.device!.total, "what was planned");
      assert.ok(logitsOf(cuda, tokens).every(Number.isFinite));
    }
    assert.throws(
      () => cudaExecutor(placed, { ...LIMITS, gpuMemory: taken - 1 }),
      refusal("usage", /need [\d.]+ \w+ of the GPU's memory and .* are taken, of .* that are allowed/),
    );
    {
      using _ = environment({ CUDA_SIM_MEMORY: `${Math.floor(taken * 0.9)}` });
      assert.throws(
        () => cudaExecutor(placed, { ...LIMITS, gpuMemory: taken }),
        refusal("environment", /out of memory/i),
      );
      using context = Context.retain(Driver.open());
      const { free, total } = context.memory();
      assert.equal(free, total, "what the failure had taken is free again");
    }
    using cuda = cudaExecutor(placed, { ...LIMITS, gpuMemory: taken });
    assert.ok(logitsOf(cuda, tokens).every(Number.isFinite));
  }));

Deno.test("a fault of the device names the step, ends the executor, and the next executor is clean", () =>
  withBundle((bundle, tokens) => {
    const placed = onGpu(bundle, { limits: LIMITS });
    let expected: Float32Array;
    {
      using cuda = cudaExecutor(placed, LIMITS);
      expected = logitsOf(cuda, tokens);
    }
    {
      using cuda = cudaExecutor(placed, LIMITS);
      {
        using _ = environment({ CUDA_SIM_FAIL: "cuStreamSynchronize:1:700" });
        assert.throws(
          () => logitsOf(cuda, tokens),
          refusal(
            "environment",
            /^a decode step of 40 tokens failed on the GPU: cuStreamSynchronize: .*700/s,
          ),
        );
      }
      // It stays ended.
      assert.throws(() => logitsOf(cuda, tokens), /failed on the GPU/);
    }
    using cuda = cudaExecutor(placed, LIMITS);
    assertSameBits(logitsOf(cuda, tokens), expected, "the next executor");
  }));
