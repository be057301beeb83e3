/**
 * Bundles that somebody has edited and given fitting checksums: opened and, when they are accepted, run for a prompt and
 * a token on the cpu executor.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { unzipSync, zipSync } from "fflate";
import { openBundle, PLAN_FILE, readPlan, sha256, WEIGHTS_FILE } from "../../compiler/bundle.ts";
import { COMPILE_DEFAULTS, compileModel, type CompileOptions } from "../../compiler/compile.ts";
import { genericProfile } from "../../compiler/profile.ts";
import { bytesChecksum } from "../../compiler/weights/checksum.ts";
import type { Plan } from "../../compiler/plan.ts";
import { layoutSafetensors, readSafetensors } from "../../compiler/weights/safetensors.ts";
import { type TinyModel, writeTinyModel } from "../fixtures/tiny_model.ts";
import { createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import { type Case, main } from "./fuzz.ts";
import { type Json, mutate, mutateEverywhere, wordsOf } from "./mutate.ts";
import type { Random } from "./random.ts";
import { rewire } from "./rewire.ts";

const BUNDLES: readonly (readonly [TinyModel, Partial<CompileOptions>])[] = [
  [{}, {
    weights: "q3",
    correct: "both",
    budget: { kind: "rank+channels", rank: 2, channels: 4 },
    maxRank: 4,
  }],
  [{ architecture: "qwen3", tied: true }, { weights: "q4", group: 32, correct: "sparse", residualWidth: 2 }],
  [{ layers: 1 }, {
    weights: "q2",
    correct: "low_rank",
    budget: { kind: "rank", rank: 3 },
    factorDType: "bf16",
  }],
  [{ layers: 1, tied: true }, { weights: "bf16", head: "bf16", correct: "none" }],
];

async function prepare(folder: string): Promise<void> {
  for (const [index, [shape, options]] of BUNDLES.entries()) {
    const model = join(folder, `model${index}`);
    writeTinyModel(model, shape);
    const output = join(folder, "bundles", `${index}`);
    mkdirSync(join(folder, "bundles"), { recursive: true });
    const defaults = { ...COMPILE_DEFAULTS, threads: 2, profile: genericProfile(2) };
    await compileModel({ ...defaults, ...options, model, output });
  }
}

interface Parts {
  readonly plan: Plan;
  readonly header: Json;
  readonly manifest: { files: Record<string, string>; weights: { bytes: number; checksum: string } };
  readonly zip: Record<string, Uint8Array>;
  /** All of weights.safetensors, and what follows its header. */
  readonly weights: Uint8Array;
  readonly data: Uint8Array;
  readonly run: Uint8Array;
  readonly words: readonly string[];
}

function read(bundle: string): Parts {
  const zip = unzipSync(readFileSync(join(bundle, PLAN_FILE)));
  const json = (bytes: Uint8Array | undefined) => JSON.parse(new TextDecoder().decode(bytes));
  const weights = readFileSync(join(bundle, WEIGHTS_FILE));
  const headerBytes = Number(weights.readBigUInt64LE(0));
  const { plan } = readPlan(bundle);
  const header: Json = json(weights.subarray(8, 8 + headerBytes));
  return {
    plan,
    header,
    manifest: json(zip["manifest.json"]),
    zip,
    weights,
    data: weights.subarray(8 + headerBytes),
    run: readFileSync(join(bundle, "run.ts")),
    words: [...wordsOf(header, wordsOf(json(zip["plan.json"])))],
  };
}

/** What a plan is mostly made of, so that its small parts get their share too. */
const PARTS = [
  "graph",
  "graph",
  "graph",
  "weights",
  "windows",
  "lanes",
  "lanes",
  "memory",
  "model",
  "vectors",
];

interface Documents {
  readonly plan: Json;
  readonly header: Json;
}

function changed(parts: Parts, random: Random, note: (change: string) => void): Documents {
  let rewired = parts.plan;
  const isRewired = random.chance(0.5);
  for (let n = isRewired ? 1 + random.below(2) : 0; n > 0; n--) {
    const [plan, change] = rewire(rewired, random);
    note(change);
    rewired = plan;
  }
  const plan: Json = JSON.parse(JSON.stringify(rewired));
  const header = structuredClone(parts.header);
  for (let n = isRewired ? random.below(2) : 1 + random.below(3); n > 0; n--) {
    if (random.chance(0.25)) {
      const whole: Json = random.chance(0.3) ? [plan, header] : plan;
      note(mutateEverywhere(whole, random, parts.words));
    } else if (random.chance(0.15)) {
      note(`header: ${mutate(header, random, parts.words)}`);
    } else if (plan !== null && typeof plan === "object" && !Array.isArray(plan)) {
      const part = random.chance(0.1) ? undefined : random.pick(PARTS);
      const document = part === undefined ? plan : plan[part] ?? plan;
      note(`${part ?? "plan"}: ${mutate(document, random, parts.words)}`);
    }
  }
  return { plan, header };
}

/** The tensors in another order, so that another one lies where the mapping ends. */
function shuffled(parts: Parts, random: Random): Pick<Parts, "header" | "data"> {
  const { tensors } = readSafetensors(parts.weights, WEIGHTS_FILE);
  const order = [...tensors].filter(([name]) => !name.startsWith("__padding."))
    .map(([name, view]) => ({ at: random.next(), name, ...view })).sort((a, b) => a.at - b.at);
  const { header, ranges, fileBytes } = layoutSafetensors(order);
  const data = new Uint8Array(fileBytes - header.length);
  for (const { name, bytes } of order) data.set(bytes, (ranges.get(name)?.offset ?? 0) - header.length);
  return { header: JSON.parse(new TextDecoder().decode(header.subarray(8))), data };
}

/** Writes a bundle whose checksums all fit. */
function write(folder: string, parts: Parts, { plan, header }: Documents): void {
  const encode = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));
  const json = encode(header);
  const start = Math.ceil((8 + json.length) / 64) * 64;
  const weights = new Uint8Array(start + parts.data.length).fill(0x20, 0, start);
  new DataView(weights.buffer).setBigUint64(0, BigInt(start - 8), true);
  weights.set(json, 8);
  weights.set(parts.data, start);
  const planBytes = encode(plan);
  const manifest = {
    ...parts.manifest,
    files: { ...parts.manifest.files, "plan.json": sha256(planBytes) },
    weights: { bytes: weights.length, checksum: bytesChecksum(weights, 1) },
  };
  const zip = { ...parts.zip, "plan.json": planBytes, "manifest.json": encode(manifest) };
  writeFileSync(join(folder, PLAN_FILE), zipSync(zip, { level: 0 }));
  writeFileSync(join(folder, WEIGHTS_FILE), weights);
  writeFileSync(join(folder, "run.ts"), parts.run);
}

function load(folder: string): Case {
  const bundles = readdirSync(join(folder, "bundles")).sort().map((name) =>
    read(join(folder, "bundles", name))
  );
  const edited = join(folder, "edited");
  mkdirSync(edited, { recursive: true });
  return (random, note) => {
    const original = random.pick(bundles);
    note(`bundle ${bundles.indexOf(original)}`);
    const parts = { ...original, ...shuffled(original, random) };
    write(edited, parts, changed(parts, random, note));
    using bundle = openBundle(edited, { threads: 1 });
    using executor = createCpuExecutor(bundle, {
      threads: 1 + random.below(2),
      corrections: random.pick(["auto", "async", "inline", "off"]),
      contextLength: Math.min(64, bundle.plan.model.contextLength),
    });
    using sequence = executor.sequence();
    const tokens = Int32Array.of(1, 2, 3);
    executor.step({ runs: [{ sequence, tokens, position: 0, as: "prefill", logits: "all" }] });
    executor.step({
      runs: [{ sequence, tokens: Int32Array.of(4), position: 3, as: "decode", logits: "last" }],
    });
  };
}

if (import.meta.main) await main(import.meta.filename ?? "", { prepare, load });
