import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { unzipSync, zipSync } from "fflate";
import { openBundle, PLAN_FILE, readPlan, RUN_FILE, sha256, WEIGHTS_FILE } from "./bundle.ts";
import { HcinferError } from "./errors.ts";
import { refused, Workplace } from "../tests/fixtures/workplace.ts";

Deno.test("a bundle opens as it was compiled, with every tensor aligned", async () => {
  using work = new Workplace();
  const { plan, graphText, bytes } = await work.compile();
  assert.deepEqual(readdirSync(work.bundle).sort(), [PLAN_FILE, "run.ts", "tokenizer.json", WEIGHTS_FILE]);
  using bundle = openBundle(work.bundle);
  assert.deepEqual(bundle.plan, JSON.parse(JSON.stringify(plan)));
  assert.equal(bundle.graphText, graphText);
  assert.equal(readFileSync(join(work.bundle, WEIGHTS_FILE)).length, bytes);
  for (const weight of plan.weights) {
    const { bytes } = bundle.tensor(weight.tensor);
    assert.equal(bytes.length, weight.bytes);
    assert.equal(bytes.byteOffset % 64, 0);
  }
  assert.throws(() => bundle.tensor("nothing"), HcinferError);
});

Deno.test("the same model gives the same files, for every number of threads", async () => {
  using work = new Workplace();
  await work.compile();
  const other = join(work.path, "other");
  await work.compile(other, { threads: 5 });
  for (const name of readdirSync(work.bundle)) {
    assert.equal(
      sha256(readFileSync(join(work.bundle, name))),
      sha256(readFileSync(join(other, name))),
      name,
    );
  }
});

Deno.test("a bundle that was cut off, edited or lost a file is refused with the reason", async () => {
  using work = new Workplace();
  await work.compile();
  const damaged = join(work.path, "damaged");
  const damage = async (change: (folder: string) => void, pattern: RegExp) => {
    rmSync(damaged, { recursive: true, force: true });
    cpSync(work.bundle, damaged, { recursive: true });
    change(damaged);
    await refused(() => openBundle(damaged), "bundle", pattern);
  };
  const flip = (file: string, at: number) => {
    const bytes = readFileSync(file);
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    writeFileSync(file, bytes);
  };
  const weights = (folder: string) => join(folder, WEIGHTS_FILE);
  await damage(
    (f) => truncateSync(weights(f), 1000),
    /weights\.safetensors has 1000 bytes, \d+ were written/,
  );
  await damage((f) => appendFileSync(weights(f), "x"), /were written/);
  await damage((f) => flip(weights(f), readFileSync(weights(f)).length - 100), /was changed/);
  await damage((f) => rmSync(weights(f)), /weights\.safetensors is missing/);
  await damage((f) => rmSync(join(f, "tokenizer.json")), /tokenizer\.json is missing/);
  await damage((f) => writeFileSync(join(f, "tokenizer.json"), "{ }"), /tokenizer\.json was changed/);
  await damage((f) => rmSync(join(f, PLAN_FILE)), /not a bundle/);
  const size = readFileSync(join(work.bundle, PLAN_FILE)).length;
  await damage((f) => truncateSync(join(f, PLAN_FILE), size - 30), /damaged or cut off/);
  await damage((f) => truncateSync(join(f, PLAN_FILE), 0), /damaged or cut off/);
  for (const part of [0.2, 0.5, 0.8]) {
    await damage((f) => flip(join(f, PLAN_FILE), Math.floor(size * part)), /cannot be used/);
  }
  await refused(() => openBundle(work.model), "bundle", /it is a model: compile it first/);
  await refused(() => openBundle(join(work.path, "nothing")), "bundle", /no such folder/);
});

Deno.test("files are read through the manifest, checked at that moment, and only those it lists", async () => {
  using work = new Workplace();
  await work.compile();
  const text = (bytes: Uint8Array | undefined) => bytes && new TextDecoder().decode(bytes);
  writeFileSync(join(work.bundle, "tokenizer_config.json"), "{}");
  using bundle = openBundle(work.bundle);
  assert.equal(text(bundle.file("tokenizer.json")), "{}");
  for (const other of ["tokenizer_config.json", "plan.json", "toString", WEIGHTS_FILE]) {
    assert.equal(bundle.file(other), undefined, other);
  }
  writeFileSync(join(work.bundle, "tokenizer.json"), "[]");
  await refused(() => bundle.file("tokenizer.json"), "bundle", /tokenizer\.json was changed/);
  await refused(() => readPlan(work.bundle).file("tokenizer.json"), "bundle", /tokenizer\.json was changed/);
});

Deno.test("run.ts belongs to the bundle, and runs the hcinfer that is installed, wherever it is", async () => {
  using work = new Workplace();
  await work.compile();
  const script = join(work.bundle, RUN_FILE);
  const text = readFileSync(script, "utf8");
  assert.doesNotMatch(text, /npm:|file:/);
  const here = fileURLToPath(new URL("../", import.meta.url));
  for (const path of [here, Deno.execPath(), work.path]) assert.ok(!text.includes(path), path);
  const run = async (env: Record<string, string>) => {
    const args = ["run", "-A", "--no-config", "--check", script, "a prompt"];
    const folders = { HCINFER_HOME: "", HCINFER_BIN: "", HOME: work.path, PATH: "" };
    const command = new Deno.Command(Deno.execPath(), { args, clearEnv: true, env: { ...folders, ...env } });
    const { code, stdout, stderr } = await command.output();
    return { code, out: new TextDecoder().decode(stdout), err: new TextDecoder().decode(stderr) };
  };
  const nothing = await run({});
  assert.equal(nothing.code, 6, nothing.err);
  assert.match(
    nothing.err,
    /error: hcinfer is not installed: run "deno task install" in its folder, or set HCINFER_HOME/,
  );
  const wrong = await run({ HCINFER_HOME: work.path });
  assert.equal(wrong.code, 6);
  assert.match(wrong.err, /error: HCINFER_HOME is .*, which has no main\.ts/);
  const bin = join(work.path, ".local", "bin");
  mkdirSync(bin, { recursive: true });
  writeFileSync(join(bin, "hcinfer"), '#!/bin/sh\necho "$0: $*"\nexit 7\n', { mode: 0o755 });
  for (const env of [{}, { HCINFER_BIN: bin }, { PATH: `/nowhere:${bin}` }]) {
    const { code, out } = await run(env);
    assert.deepEqual([code, out], [7, `${bin}/hcinfer: run ${work.bundle}/ a prompt\n`]);
  }
  writeFileSync(script, `${text}\n`);
  await refused(() => openBundle(work.bundle), "bundle", /run\.ts was changed/);
});

Deno.test("whatever happens to plan.zip, the plan is the one that was written or there is none", async () => {
  using work = new Workplace();
  await work.compile();
  const { plan } = readPlan(work.bundle);
  const file = join(work.bundle, PLAN_FILE);
  const sound = readFileSync(file);
  const readOrRefuse = (bytes: Uint8Array) => {
    writeFileSync(file, bytes);
    try {
      assert.deepEqual(readPlan(work.bundle).plan, plan);
    } catch (error) {
      assert.ok(error instanceof HcinferError && error.kind === "bundle", String(error));
    }
  };
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), readOrRefuse), { numRuns: 50 });
  // The directory at the end says where everything is and how large: most edits go there.
  const at = fc.oneof(
    fc.nat(sound.length - 1),
    fc.integer({ min: sound.length - 300, max: sound.length - 1 }),
  );
  fc.assert(
    fc.property(at, fc.integer({ min: 1, max: 255 }), (at, change) => {
      const bytes = Uint8Array.from(sound);
      bytes[at] = (bytes[at] ?? 0) ^ change;
      readOrRefuse(bytes);
    }),
    { numRuns: 150 },
  );
});

Deno.test("a plan.zip of some kilobytes that unfolds to gigabytes is refused before it does", async () => {
  using work = new Workplace();
  await work.compile();
  const parts = unzipSync(readFileSync(join(work.bundle, PLAN_FILE)));
  const replaced = (name: string, bytes: Uint8Array) => {
    const manifest = JSON.parse(new TextDecoder().decode(parts["manifest.json"]));
    manifest.files[name] = sha256(bytes);
    const changed = { ...parts, "manifest.json": new TextEncoder().encode(JSON.stringify(manifest)) };
    writeFileSync(join(work.bundle, PLAN_FILE), zipSync({ ...changed, [name]: bytes }));
    return () => readPlan(work.bundle);
  };
  const zeros = new Uint8Array(80 * 2 ** 20);
  await refused(replaced("plan.json", zeros), "bundle", /plan\.json unfolds to more than 67108864 bytes/);
  const brackets = new Uint8Array(60 * 2 ** 20).fill("[".charCodeAt(0));
  await refused(replaced("plan.json", brackets), "bundle", /nested more than 64 deep/);
  const plan = JSON.parse(new TextDecoder().decode(parts["plan.json"]));
  plan.weights = Array(1_000_000).fill({});
  const faults = replaced("plan.json", new TextEncoder().encode(JSON.stringify(plan)));
  await refused(faults, "bundle", /weights\.0\.tensor.{0,100}\. Compile it again\.$/s);
});

Deno.test("pipes and folders in the place of a bundle's files are refused, and nothing waits", async () => {
  using work = new Workplace();
  for (const name of [PLAN_FILE, WEIGHTS_FILE, "tokenizer.json"]) {
    await work.compile();
    rmSync(join(work.bundle, name));
    execFileSync("mkfifo", [join(work.bundle, name)]);
    await refused(() => openBundle(work.bundle), "bundle", /it is a pipe or a device/);
    rmSync(work.bundle, { recursive: true });
  }
});

interface Parts {
  manifest: { version: number; files: Record<string, string> };
  plan: Record<string, never>;
}

/** Copies a bundle with its plan and manifest changed and the checksums made right again. */
function forge(bundle: string, forged: string, change: (parts: Parts) => void): void {
  cpSync(bundle, forged, { recursive: true });
  const zip = unzipSync(readFileSync(join(bundle, PLAN_FILE)));
  const decode = (name: string) => JSON.parse(new TextDecoder().decode(zip[name]));
  const encode = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));
  const parts: Parts = { manifest: decode("manifest.json"), plan: decode("plan.json") };
  change(parts);
  const plan = encode(parts.plan);
  parts.manifest.files["plan.json"] = sha256(plan);
  const changed = { ...zip, "plan.json": plan, "manifest.json": encode(parts.manifest) };
  writeFileSync(join(forged, PLAN_FILE), zipSync(changed));
}

/** Sets the value at a dotted path of the plan. */
function set(path: string, value: unknown): (parts: Parts) => void {
  return ({ plan }) => {
    const keys = path.split(".");
    let at: Record<string, unknown> = plan;
    for (const key of keys.slice(0, -1)) at = at[key] as Record<string, unknown>;
    at[keys.at(-1) ?? ""] = value;
  };
}

Deno.test("other versions, and plans that say what the weights do not hold, are refused", async () => {
  using work = new Workplace();
  const forged = join(work.path, "forged");
  await work.compile();
  const lie = async (change: (parts: Parts) => void, pattern: RegExp) => {
    forge(work.bundle, forged, change);
    await refused(() => openBundle(forged), "bundle", pattern);
  };
  const { plan: { graph } } = readPlan(work.bundle);
  const index = (op: string) => graph.nodes.findIndex((n) => n.op === op);
  const [linear, sparse, append] = [index("linear"), index("sparse_select"), index("append")];
  await lie(({ manifest }) => manifest.version = 99, /it is of version 99, and this hcinfer reads version 4/);
  await lie(({ manifest }) => delete manifest.files["graph.py"], /no checksum of graph\.py/);
  await lie(({ manifest }) => manifest.files["../x"] = "0".repeat(64), /which is no file of it/);
  await lie(set("weights.1.bytes", 64), /is not the graph's/);
  await lie(
    set("weights.1.tensor", "model.norm.weight"),
    /k_proj\+v_proj is in the tensor model\.norm\.weight/,
  );
  await lie(set("weights.1.format", "q4g32"), /is not the graph's/);
  await lie(
    set(`graph.nodes.${linear}.params.weights.0.outputs`, 1 << 20),
    /is not sound|is not the graph's/,
  );
  await lie(set(`graph.nodes.${sparse}.params.width`, 8), /correction of window/);
  await lie(set(`graph.nodes.${sparse}.params.channels`, 1000), /is not sound/);
  await lie(set("windows.0.outputs", 1 << 20), /residual\.codes is/);
  await lie(set("windows.0.residual.width", 5), /correction of window/);
  await lie(set("memory.bytesPerToken", 64), /its memory is not laid out for its graph/);
  await lie(set("graph.nodes", [{}]), /is not sound/);
  await lie(set(`graph.nodes.${append}.added`, {}), /is not sound/);
  await lie(set(`graph.nodes.${append}.params.layer`, "0"), /is not sound/);
  await lie(set("lanes.0.steps.0", { wait: 99 }), /its lanes are not those of its graph/);
  await lie(set("lanes.0.steps.0", { run: 9999 }), /its lanes are not those of its graph/);
  await refused(() => readPlan(forged), "bundle", /its lanes are not those of its graph/);
  await lie(set("model.vocabularySize", 1000), /its vocabulary is 1000 in the model and 41 in the graph/);
  await lie(set("model.heads", -1), /its plan does not fit/);

  await work.compile(work.bundle, { correct: "low_rank", budget: { kind: "rank", rank: 2 } });
  const { nodes } = readPlan(work.bundle).plan.graph;
  const [down, up] = (["low_rank_down", "low_rank_up"] as const).map((op) =>
    nodes.findIndex((n) => n.op === op)
  );
  await lie(set(`graph.nodes.${down}.params.rank`, 5), /is not sound/);
  const both = (key: string, value: unknown) => (parts: Parts) => {
    for (const node of [down, up]) set(`graph.nodes.${node}.params.${key}`, value)(parts);
  };
  await lie(set(`graph.nodes.${down}.params.dtype`, "bf16"), /is not sound/);
  await lie(both("dtype", "bf16"), /correction of window/);
  await lie(set("windows.0.factors.maxRank", 64), /factors\.a is I8 \[4,64\], the plan expects I8 \[64,64\]/);
});
