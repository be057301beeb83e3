/** A model of random weights on this device: decode steps, and prompts. */
import { join } from "node:path";
import type { CorrectionMode, Plan } from "../../compiler/plan.ts";
import type { MachineProfile } from "../../compiler/profile.ts";
import { describeFirstGpu } from "../../runtime/gpu_machine.ts";
import { genericProfile } from "../../compiler/profile.ts";
import { median } from "../../cli/bench.ts";
import { OpenModel } from "../../cli/opening.ts";
import { cacheFolder } from "../bench/shape.ts";
import { planRandomModel, type RandomModelOptions, writeRandomBundle } from "../bench/random_bundle.ts";
import type { Setting } from "./setting.ts";
import { shapeOf } from "./setting.ts";

/** Tokens that are cached before decoding is measured, and that are decoded. */
export const CONTEXT = 512;
const DECODED = 64;
export const PROMPT = 2048;
const REPEATS = 3;

/** Writes a bundle of the setting's shape. */
export async function randomBundle(
  setting: Setting,
  name: string,
  options: Pick<RandomModelOptions, "weights" | "correct" | "budget" | "profile">,
): Promise<{ readonly path: string; readonly plan: Plan }> {
  const path = join(cacheFolder(), setting.isSmoke ? "gpu-smoke" : "gpu", name);
  const model = await planRandomModel({ shape: shapeOf(setting), head: options.weights, ...options });
  writeRandomBundle(path, model, setting.threads);
  return { path, plan: model.plan };
}

/** This machine as far as its driver describes it. */
export function thisMachine(threads: number): MachineProfile {
  const gpu = describeFirstGpu();
  const profile = genericProfile(threads);
  return gpu === undefined ? profile : { ...profile, gpu };
}

export interface Speeds {
  /** Seconds of a decode step, and of a prompt. */
  readonly step: number;
  readonly prompt: number;
  /** Bytes that a step must read: weights but the embedding, and keys and values. */
  readonly bytes: number;
  readonly executor: string;
}

/** Medians of some repeats, everything that JavaScript does included. */
export function measureModel(
  path: string,
  setting: Setting,
  corrections: CorrectionMode,
  gpuMemory?: number,
): Speeds {
  const [context, decoded, prompt] = setting.isSmoke ? [24, 2, 32] : [CONTEXT, DECODED, PROMPT];
  using model = OpenModel.open(path, {
    device: "cuda",
    threads: setting.threads,
    corrections,
    contextLength: Math.max(prompt, context + decoded),
    capacity: Math.min(prompt, 1024),
    ...(gpuMemory === undefined ? {} : { gpuMemory }),
  });
  const { executor, bundle: { plan } } = model;
  const [prompts, steps]: [number[], number[]] = [[], []];
  const repeats = setting.isSmoke ? 1 : REPEATS;
  for (let repeat = setting.isSmoke ? 1 : 0; repeat <= repeats; repeat++) {
    const whole = fill(executor, prompt);
    whole.sequence[Symbol.dispose]();
    using sequence = fill(executor, context).sequence;
    const started = performance.now();
    for (let position = context; position < context + decoded; position++) {
      const tokens = Int32Array.of((position * 97 + 5) % executor.model.vocabularySize);
      executor.step({ runs: [{ sequence, position, tokens, as: "decode", logits: "last" }] });
    }
    // The first repeat warms up and does not count.
    if (repeat === 0) continue;
    steps.push((performance.now() - started) / 1000 / decoded);
    prompts.push(whole.seconds);
  }
  const { layers, kvHeads, headDim } = plan.model;
  const weights = plan.weights.filter(({ tensor }) => !tensor.includes("embed"))
    .reduce((sum, weight) => sum + weight.bytes, 0);
  const cached = 2 * 2 * layers * kvHeads * headDim * (context + decoded / 2);
  return { step: median(steps), prompt: median(prompts), bytes: weights + cached, executor: executor.name };
}

/** A sequence of `count` tokens, and the seconds that it took to its last logits. */
function fill(executor: OpenModel["executor"], count: number) {
  const sequence = executor.sequence();
  const ids = Int32Array.from({ length: count }, (_, i) => (i * 97 + 5) % executor.model.vocabularySize);
  const started = performance.now();
  for (let position = 0; position < count; position += executor.capacity) {
    const tokens = ids.slice(position, position + executor.capacity);
    const logits = position + tokens.length === count ? "last" : "none";
    executor.step({ runs: [{ sequence, position, tokens, as: "prefill", logits }] });
  }
  return { sequence, seconds: (performance.now() - started) / 1000 };
}
