/** What the cpu executor takes of a machine: memory and threads, as predicted. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import type { Bundle } from "../../../compiler/bundle.ts";
import { predictPlan } from "../../../compiler/inspect.ts";
import { splitThreads } from "../../../compiler/plan.ts";
import { PROFILES } from "../../../compiler/profile.ts";
import { timelineOf } from "../../../compiler/timeline.ts";
import type { TinyModel } from "../../../tests/fixtures/tiny_model.ts";
import { RandomModels } from "../../../tests/parity/random_models.ts";
import type { ExecutorOptions } from "../../executor.ts";
import { createNullExecutor } from "../null.ts";
import { type CpuExecutor, createCpuExecutor } from "./executor.ts";

const TINY: TinyModel = { context: 512 };
const Q4 = { weights: "q4", group: 32 } as const;

function open(bundle: Bundle, options: Partial<ExecutorOptions> = {}): CpuExecutor {
  return createCpuExecutor(bundle, { threads: 1, corrections: "auto", ...options });
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
