/**
 * The library in thirty lines: compile a model once, then stream text from it.
 *
 *   deno run -A examples/generate.ts [prompt]        (after: deno task build)
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import {
  COMPILE_DEFAULTS,
  compileModel,
  createCpuExecutor,
  genericProfile,
  openBundle,
  Sampler,
  Session,
  Tokenizer,
} from "../mod.ts";

const root = fileURLToPath(new URL("../", import.meta.url));
const output = join(root, "bundles", "example");
if (!existsSync(output)) {
  const model = join(root, "examples/models/tiny-dense");
  await compileModel({ ...COMPILE_DEFAULTS, model, output, threads: 2, profile: genericProfile(2) });
}

using bundle = openBundle(output);
using executor = createCpuExecutor(bundle, { threads: 2, corrections: "auto" });
const tokenizer = Tokenizer.open(bundle, bundle.plan.model.vocabularySize);
const prompt = process.argv[2] ?? "A compiler is";
const generation = new Session(executor).generate(tokenizer.encode(prompt), {
  sampler: new Sampler({ temperature: 0.8, topP: 0.95, seed: 1 }),
  tokenizer,
  maxTokens: 64,
});
process.stdout.write(prompt);
for await (const { text } of generation) process.stdout.write(text);
process.stdout.write(`\n${generation.statistics.decodeTokensPerSecond.toFixed(0)} tokens/s\n`);
