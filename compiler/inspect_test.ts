import assert from "node:assert/strict";
import { CHOICES, limits, passes, tinyPlan } from "../tests/fixtures/passes.ts";
import { TINY, transformer } from "./ir/fixture.ts";
import { windowOf } from "./ir/graph.ts";
import { layout } from "./passes/layout.ts";
import { layersText, predictionText, predictPlan } from "./inspect.ts";
import { limitsOf, memoryOf } from "./memory.ts";
import { schedule } from "./passes/schedule.ts";
import { type Plan, splitThreads } from "./plan.ts";
import { type MachineProfile, PROFILES } from "./profile.ts";
import { asyncTimeline, serialTimeline } from "./timeline.ts";

const plan = tinyPlan();

/** The plan, scheduled for another machine. */
function scheduledFor(profile: typeof PROFILES[keyof typeof PROFILES], threads = profile.cpu.cores): Plan {
  const { lanes, corrections } = schedule(plan.graph, { profile, threads });
  return { ...plan, lanes, corrections, provenance: { profile } };
}

function assertNear(actual: number, expected: number, slack: number, what: string): void {
  assert.ok(Math.abs(actual - expected) <= slack, `${what}: ${actual}, expected ${expected}`);
}

Deno.test("a prediction is of the machine the plan was compiled for, and of no other that is not asked for", () => {
  const prediction = predictPlan(plan);
  assert.deepEqual(
    [prediction.profile, prediction.profileMeasured, prediction.threads],
    ["generic-2-core", false, 2],
  );
  assert.deepEqual(prediction.modes.map((m) => m.mode), ["inline", "async", "off"]);
  const { profile: _, ...rest } = plan.provenance;
  assert.equal(predictPlan({ ...plan, provenance: rest }).profile, "generic-2-core");
  const profile = PROFILES["generic-8-core"];
  const other = predictPlan(plan, { profile });
  assert.deepEqual([other.profile, other.threads], ["generic-8-core", 8]);
  assert.notDeepEqual(other.modes, prediction.modes);
});

Deno.test("modes are the timelines of the plan", () => {
  const profile = PROFILES["generic-8-core"];
  for (let threads = 1; threads <= 8; threads++) {
    const { modes } = predictPlan(plan, { profile, threads });
    assert.equal(modes.some(({ mode }) => mode === "async"), threads > 1);
    for (const { mode, microseconds, tokensPerSecond, lanes } of modes) {
      const { compensation } = splitThreads(plan.corrections, threads);
      const options = { profile, threads, compensationThreads: compensation };
      const expected = mode === "async"
        ? asyncTimeline(plan.graph, plan.lanes, options)
        : serialTimeline(plan.graph, mode, options);
      assert.deepEqual([microseconds, lanes], [expected.microseconds, expected.lanes]);
      assertNear(tokensPerSecond, 1e6 / microseconds, 0.05, "tokens per second");
      assert.equal(lanes.reduce((sum, lane) => sum + lane.threads, 0), threads);
      for (const { busy, stalled } of lanes) assert.ok(busy > 0 && busy + stalled <= microseconds + 0.02);
    }
    const time = new Map(modes.map((m) => [m.mode, m.microseconds]));
    assert.ok(time.get("off")! < time.get("inline")!);
  }
});

Deno.test("the default is no mode that is shown as slower, for any machine the plan was compiled for", () => {
  const defaults = new Set<string>();
  for (const profile of Object.values(PROFILES)) {
    for (let threads = 1; threads <= profile.cpu.cores; threads++) {
      const prediction = predictPlan(scheduledFor(profile, threads), { threads });
      const time = (mode: string) => prediction.modes.find((m) => m.mode === mode)?.microseconds ?? Infinity;
      const what = `${profile.name}, ${threads} threads: ${JSON.stringify(prediction.modes)}`;
      assert.equal(time(prediction.defaultMode), Math.min(time("inline"), time("async")), what);
      defaults.add(prediction.defaultMode);
      assert.match(predictionText(prediction), new RegExp(`  ${prediction.defaultMode} .*\\(default\\)`));
    }
  }
  assert.deepEqual([...defaults].sort(), ["async", "inline"]);
  // With one thread there are no lanes beside each other, whatever the plan prefers.
  assert.equal(plan.corrections.mode, "async");
  assert.equal(predictPlan(plan, { threads: 1 }).defaultMode, "inline");
});

Deno.test("a plan without corrections has one mode", () => {
  const { graph, lanes: [backbone] } = plan;
  const corrections = {
    mode: "off",
    threads: 2,
    compensationThreads: 0,
    cause: "none",
    prefill: "none",
    prefillCause: "none",
  } as const;
  const prediction = predictPlan({ ...plan, graph, lanes: [backbone!], corrections });
  assert.deepEqual(prediction.modes.map((m) => m.mode), ["off"]);
  assert.equal(prediction.defaultMode, "off");
});

Deno.test("the times of layers are those of a token in line", () => {
  const { layers, modes } = predictPlan(plan);
  assert.deepEqual(layers.map((l) => l.layer), [null, 0, 1]);
  const sum = (of: (l: typeof layers[number]) => number) => layers.reduce((total, l) => total + of(l), 0);
  const inline = modes.find((m) => m.mode === "inline")!, off = modes.find((m) => m.mode === "off")!;
  const slack = 0.05 * 4 * layers.length;
  const all = sum((l) => l.linears + l.attention + l.other + l.corrections);
  assertNear(all, inline.microseconds, slack, "all");
  assertNear(all - sum((l) => l.corrections), off.microseconds, slack, "without corrections");
  for (const l of layers.slice(1)) {
    assert.ok(l.linears > 0 && l.attention > 0 && l.other > 0 && l.corrections > 0, JSON.stringify(l));
  }
  // Outside the layers: the embedding, the last norm and the head.
  assert.ok(layers[0]!.linears > 0 && layers[0]!.attention === 0 && layers[0]!.corrections === 0);
});

Deno.test("memory is that of the limits an executor would have", () => {
  assert.deepEqual(predictPlan(plan).memory, memoryOf(plan, limitsOf(plan.model)).bytes);
  const asked = { capacity: 16, contextLength: 100, cachePositions: 640 };
  assert.deepEqual(predictPlan(plan, asked).memory, memoryOf(plan, asked).bytes);
  assert.throws(() => predictPlan(plan, { contextLength: 129 }), /context of 129 tokens: expected 1 to 128/);
});

Deno.test("a prediction is JSON, and its text fits 80 columns", () => {
  for (const options of [{}, { threads: 1 }, { profile: PROFILES["rtx-4060-laptop"], threads: 8 }]) {
    const prediction = predictPlan(plan, options);
    assert.deepEqual(JSON.parse(JSON.stringify(prediction)), prediction);
    for (const text of [predictionText(prediction), layersText(prediction)]) {
      for (const line of text.split("\n")) assert.ok(line.length <= 80, line);
    }
  }
  // Sizes of a large model.
  const big = predictPlan(plan);
  const memory = Object.fromEntries(
    Object.entries(big.memory).map(([key]) => [key, 987.6e9]),
  ) as typeof big.memory;
  const modes = big.modes.map((m) => ({ ...m, microseconds: 1e3 * m.microseconds }));
  const layers = big.layers.map((l) => ({ ...l, linears: 123_456.7, layer: l.layer === 1 ? 127 : l.layer }));
  const wide = { ...big, memory, modes, layers, profile: "x".repeat(70) };
  for (const line of [predictionText(wide), layersText(wide)].join("\n").split("\n")) {
    assert.ok(line.length <= 80, line);
  }
});

Deno.test("the text of a prediction", () => {
  const text = predictionText(predictPlan(plan));
  const lines = text.split("\n");
  assert.equal(lines[0], "predicted for generic-2-core (not measured), 2 threads, 256 positions cached");
  assert.match(text, /^ {2}inline +\d+\.\d us a token, \d+ tokens\/s$/m);
  assert.match(text, /^ {10}backbone \(1 thread\): busy \d+\.\d us, waiting \d+\.\d us$/m);
  assert.match(text, /^ {10}compensation \(1 thread\): busy \d+\.\d us, waiting \d+\.\d us$/m);
  const total = Object.values(predictPlan(plan).memory).reduce((sum, bytes) => sum + bytes, 0);
  assert.ok(text.includes(`memory  ${(total / 1000).toFixed(1)} kB: weights 49.4 kB, corrections 8.0 kB,`));
  // Layers that are alike stand in one line.
  assert.match(layersText(predictPlan(plan)).split("\n").at(-1)!, /^ {2}0-1 +\d/);
});

/** A model whose windows are long enough on a GPU for corrections to hide, in the GPU's memory or with layers spilled. */
function gpuPlan(gpuMemory?: number): Plan {
  const sizes = { ...TINY, layers: 3, hidden: 2048, intermediate: 8192, vocabulary: 4096 };
  const profile = PROFILES["rtx-4060-laptop"];
  const limit = gpuMemory === undefined ? {} : { gpuMemory };
  const made =
    passes(transformer(sizes), { ...CHOICES, weights: "q4" }, { profile, limits, ...limit }).schedule;
  return { ...plan, ...made, memory: layout(made.graph), provenance: { profile } };
}

Deno.test("with a GPU: both devices' memory, what is hidden, what was spilled and why, and what prompts do", () => {
  const whole = gpuPlan();
  const prediction = predictPlan(whole);
  const memory = memoryOf(whole, limitsOf(whole.model, {}, true));
  assert.deepEqual([prediction.memory, prediction.device], [memory.bytes, memory.device]);
  assert.deepEqual(prediction.spilled, []);
  const async = prediction.modes.find(({ mode }) => mode === "async")!;
  assert.equal(prediction.defaultMode, "async");
  assert.deepEqual(async.lanes.map((l) => [l.devices, l.threads]), [[["gpu"], 0], [["cpu"], 8]]);
  assert.ok(async.corrections.busy > 0 && async.corrections.hidden === async.corrections.busy);
  const text = predictionText(prediction);
  assert.match(text, /^predicted for rtx-4060-laptop \(not measured\)/);
  assert.match(text, /^ {10}backbone \(gpu\): busy \S+ us, waiting 0\.0 us$/m);
  assert.match(text, /^ {10}corrections: (\S+ us), hidden \1$/m);
  assert.match(text, /^ {2}gpu {5}\S+ MB: weights \S+ MB, cache \S+ kB,$/m);
  assert.match(text, /^ {2}prompts {1}corrections stream: 512 tokens are predicted to take/m);
  assert.doesNotMatch(text, /on cpu|(?<!not )measured/);

  const part = gpuPlan(memory.device!.total);
  assert.deepEqual(predictPlan(part).spilled.map((s) => s.what), ["the embedding", "layer 0"]);
  const partText = predictionText(predictPlan(part));
  assert.match(
    partText,
    /^ {2}on cpu {2}the embedding to layer 0: layer 0 of 3 does not fit: \S+ MiB of \S+/m,
  );
  for (const line of [...text.split("\n"), ...partText.split("\n")]) assert.ok(line.length <= 80, line);
  // Spilled layers stay when corrections are off.
  const off = serialTimeline(part.graph, "off", { profile: PROFILES["rtx-4060-laptop"] });
  assert.equal(off.steps.length, part.graph.nodes.filter((n) => windowOf(n) === undefined).length);
  assert.throws(
    () => predictPlan(whole, { profile: PROFILES["generic-8-core"] }),
    /the plan has nodes on a GPU, and the machine generic-8-core has none/,
  );
});

Deno.test("what crosses the link takes its latency and its bytes", () => {
  const { graph, lanes } = gpuPlan();
  const profile = PROFILES["rtx-4060-laptop"];
  const slow = { ...profile, gpu: { ...profile.gpu, linkLatency: 1000, linkBandwidth: 1 } };
  const time = (machine: MachineProfile) => asyncTimeline(graph, lanes, { profile: machine });
  const merges = graph.budgets.filter((b) => b.channels > 0).length;
  const { microseconds, corrections } = time(slow);
  assert.ok(microseconds > time(profile).microseconds + 2000 * merges, `${microseconds}`);
  assert.equal(corrections.hidden, 0);
});
