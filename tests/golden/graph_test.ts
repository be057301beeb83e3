/**
 * The graph of tiny-dense after every pass, as text: a change to a pass is read as a diff of these files. The
 * statistics are made up (tests/fixtures/passes.ts), so they depend on no weights.
 *
 *     UPDATE_GOLDEN=1 deno test -A tests/golden    rewrites them
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import { traceModel } from "../../compiler/frontend/trace.ts";
import { parseGraph } from "../../compiler/ir/parse.ts";
import { printGraph } from "../../compiler/ir/text.ts";
import { transformer } from "../../compiler/ir/fixture.ts";
import { PROFILES } from "../../compiler/profile.ts";
import { CHOICES, passes } from "../fixtures/passes.ts";

const read = (path: string) => readFileSync(new URL(path, import.meta.url), "utf8");

async function tinyDense() {
  const config = JSON.parse(read("../../examples/models/tiny-dense/config.json")) as Record<string, unknown>;
  // Two layers show everything that more would.
  config.num_hidden_layers = 2;
  if (Array.isArray(config.layer_types)) config.layer_types = config.layer_types.slice(0, 2);
  return await traceModel({ source: read("../../graphs/qwen3.py"), file: "graphs/qwen3.py", config });
}

async function check(name: string, text: string): Promise<void> {
  const file = new URL(`${name}.py`, import.meta.url);
  if (process.env.UPDATE_GOLDEN) writeFileSync(file, text);
  assert.equal(text, readFileSync(file, "utf8"), `${name}.py differs; UPDATE_GOLDEN=1 rewrites it`);
  assert.equal(printGraph(await parseGraph(text, `${name}.py`)), text);
}

Deno.test("golden: tiny-dense after every pass", async () => {
  const { stages } = passes(await tinyDense());
  for (const graph of stages) await check(`tiny-dense.${graph.stage}`, printGraph(graph));
});

Deno.test("golden: tiny-dense with both forms of correction", async () => {
  const { schedule } = passes(await tinyDense(), { ...CHOICES, correct: "both" });
  await check("tiny-dense.both", printGraph(schedule.graph));
});

/** Two layers of Llama-3.1-8B's shape: windows of a GPU are long enough there for corrections to hide beside. */
const LLAMA = {
  layers: 2,
  hidden: 4096,
  heads: 32,
  kvHeads: 8,
  headDim: 128,
  intermediate: 14336,
  vocabulary: 128256,
  tied: false,
};
const GPU = {
  profile: PROFILES["rtx-4060-laptop"],
  limits: { capacity: 512, contextLength: 8192, cachePositions: 8192 },
};

for (const correct of ["sparse", "low_rank"] as const) {
  Deno.test(`golden: a plan with a GPU, ${correct}`, async () => {
    const { schedule } = passes(transformer(LLAMA), { ...CHOICES, weights: "q4", correct }, GPU);
    await check(`gpu.${correct}`, printGraph(schedule.graph));
  });
}

Deno.test("golden: a plan with a GPU that is too small", async () => {
  const { schedule } = passes(transformer(LLAMA), { ...CHOICES, weights: "q4" }, {
    ...GPU,
    gpuMemory: 1.2 * 2 ** 30,
  });
  await check("gpu.spilled", printGraph(schedule.graph));
});
