/**
 * Bundles that somebody has edited and given fitting checksums, most of them also the lanes, the memory and the types that
 * follow from the edited graph: opened and, when they are accepted, run on the cpu executor for prompts and tokens of
 * two sequences.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { unzipSync, zipSync } from "fflate";
import { openBundle, PLAN_FILE, readPlan, sha256, WEIGHTS_FILE } from "../../compiler/bundle.ts";
import { COMPILE_DEFAULTS, compileModel, type CompileOptions } from "../../compiler/compile.ts";
import { genericProfile } from "../../compiler/profile.ts";
import { bytesChecksum } from "../../compiler/weights/checksum.ts";
import { layout } from "../../compiler/passes/layout.ts";
import { makeLanes } from "../../compiler/passes/schedule.ts";
import { type Plan, Plan as PlanSchema } from "../../compiler/plan.ts";
import { layoutSafetensors, readSafetensors } from "../../compiler/weights/safetensors.ts";
import { type TinyModel, writeTinyModel } from "../fixtures/tiny_model.ts";
import type { Executor, Run, Sequence, StepKind } from "../../runtime/executor.ts";
import { createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import { type Case, main } from "./fuzz.ts";
import { type Json, mutate, mutateEverywhere, wordsOf } from "./mutate.ts";
import type { Random } from "./random.ts";
import { retyped, rewire } from "./rewire.ts";

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

/** What is changed, as often as it stands here. "node" is the parameters, or the deltas, of one node. */
const PARTS = ["graph", "graph", "node", "node", "node", "ropes", "weights", "windows", "lanes", "memory"]
  .concat(["model", "vectors", "corrections"]);

interface Documents {
  readonly plan: Json;
  readonly header: Json;
}

type JsonObject = { [key: string]: Json };

function changed(parts: Parts, random: Random, note: (change: string) => void): Documents {
  let rewired = parts.plan;
  const isRewired = random.chance(0.5);
  for (let n = isRewired ? 1 + random.below(2) : 0; n > 0; n--) {
    const [plan, change] = rewire(rewired, random);
    note(change);
    rewired = plan;
  }
  const plan = jsonOf(rewired);
  const header = structuredClone(parts.header);
  for (let n = isRewired ? random.below(2) : 1 + random.below(3); n > 0; n--) {
    if (random.chance(0.25)) {
      const whole: Json = random.chance(0.3) ? [plan, header] : plan;
      note(mutateEverywhere(whole, random, parts.words));
    } else if (random.chance(0.1)) {
      note(`header: ${mutate(header, random, parts.words)}`);
    } else {
      const part = random.chance(0.1) ? undefined : random.pick(PARTS);
      note(`${part ?? "plan"}: ${mutate(partOf(plan, part, random), random, parts.words)}`);
    }
  }
  if (random.chance(0.25)) return { plan, header };
  note("made to fit");
  const fitted = fitting(plan, random.chance(0.7));
  if (random.chance(0.1)) note(`memory: ${mutate(fitted["memory"] ?? null, random, parts.words)}`);
  return { plan: fitted, header };
}

function partOf(plan: JsonObject, part: string | undefined, random: Random): Json {
  if (part === undefined) return plan;
  const graph = objectOf(plan["graph"]);
  if (part === "ropes") return graph["ropes"] ?? plan;
  if (part !== "node") return plan[part] ?? plan;
  const nodes = graph["nodes"];
  if (!Array.isArray(nodes) || nodes.length === 0) return graph;
  const node = objectOf(random.pick(nodes));
  return node[random.chance(0.15) ? "added" : "params"] ?? node;
}

/** What follows from a plan's graph as somebody would compute it who wants the plan accepted. */
function fitting(plan: JsonObject, withTypes: boolean): JsonObject {
  const lists = [objectOf(plan["graph"])["nodes"], ...Object.values(plan)];
  if (lists.some((list) => Array.isArray(list) && list.length > MOST_FITTED)) return plan;
  try {
    const parsed = PlanSchema.parse(structuredClone(plan));
    const graph = withTypes ? retyped(parsed.graph) : parsed.graph;
    return jsonOf({ ...parsed, graph, lanes: makeLanes(graph), memory: layout(graph) });
  } catch {
    return plan;
  }
}

/** Elements of a list. The attacker's copies of longer ones would look like memory that checks take. */
const MOST_FITTED = 2000;

function jsonOf(plan: Plan): JsonObject {
  return JSON.parse(JSON.stringify(plan));
}

function objectOf(value: Json | undefined): JsonObject {
  return value === null || typeof value !== "object" || Array.isArray(value) ? {} : value;
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
      cachePositions: 256,
    });
    use(executor);
  };
}

/** Prompts and tokens of two sequences, the second of which begins as a fork of the first. */
function use(executor: Executor): void {
  const run = (sequence: Sequence, as: StepKind, logits: Run["logits"], ...tokens: number[]): Run => ({
    sequence,
    position: sequence.length,
    tokens: Int32Array.from(tokens),
    as,
    logits,
  });
  using first = executor.sequence();
  executor.step({ runs: [run(first, "prefill", "all", 1, 2, 3)] });
  using second = first.fork();
  executor.step({ runs: [run(first, "decode", "last", 4), run(second, "decode", "all", 5, 6)] });
  executor.step({
    runs: [run(first, "prefill", "none", ...Array(17).fill(7)), run(second, "decode", "last", 8)],
  });
  executor.step({ runs: [{ ...run(first, "decode", "last", 9), position: 2 }] });
}

if (import.meta.main) await main(import.meta.filename ?? "", { prepare, load });
