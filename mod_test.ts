import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { z } from "zod";
import * as library from "./mod.ts";
import { temporary } from "./tests/command_line.ts";

const ROOT = fileURLToPath(new URL("./", import.meta.url));
const MOD = new URL("./mod.ts", import.meta.url).href;
const run = promisify(execFile);

/** Explained by the headers of their files alone. None is added: what is new has words of its own. */
const WITHOUT_WORDS = [
  "Bundle CompileOptions CompileReport Correct CorrectionMode EvaluateOptions Evaluation Executor ExecutorOptions",
  "FactorDType FormatKind GenerateOptions Graph GroupSize HcinferError MachineProfile OpenOptions Plan ResidualWidth",
  "Quantizer Session Stage StepRequest WeightSource createNullExecutor printGraph",
].join(" ").split(" ");

const Documentation = z.object({
  nodes: z.record(
    z.string(),
    z.object({
      module_doc: z.object({
        tags: z.array(z.looseObject({ kind: z.string(), doc: z.string().optional() })),
      }),
      symbols: z.array(z.object({
        name: z.string(),
        declarations: z.array(
          z.looseObject({ jsDoc: z.unknown().optional() }),
        ),
      })),
    }),
  ),
});

/** What `deno doc` reads off mod.ts. */
async function documentation() {
  const { stdout } = await run(Deno.execPath(), ["doc", "--json", MOD], { cwd: ROOT, maxBuffer: 1 << 26 });
  const [nodes] = Object.values(Documentation.parse(JSON.parse(stdout)).nodes);
  assert.ok(nodes);
  return nodes;
}

Deno.test("every export is there and has words of its own", async () => {
  const { symbols } = await documentation();
  const names = symbols.map(({ name }) => name);
  assert.ok(names.length > 40);
  for (const [name, value] of Object.entries(library)) {
    assert.notEqual(value, undefined, name);
    assert.ok(names.includes(name), name);
  }
  const silent = symbols.filter(({ declarations }) => !declarations.some(({ jsDoc }) => jsDoc));
  assert.deepEqual(silent.map(({ name }) => name).filter((name) => !WITHOUT_WORDS.includes(name)), []);
});

Deno.test("the documented example runs", async () => {
  const { module_doc: { tags } } = await documentation();
  const [, code] = /^```ts\n(.*)^```/ms.exec(tags.find(({ kind }) => kind === "example")?.doc ?? "") ?? [];
  assert.ok(code !== undefined && code.includes('from "hcinfer"'));
  using folder = temporary();
  symlinkSync(join(ROOT, "examples"), join(folder.path, "examples"));
  const script = join(folder.path, "example.ts");
  const report =
    "console.log(logits.length, logits.every(Number.isFinite), bundle.plan.model.vocabularySize);";
  writeFileSync(script, `${code.replace('"hcinfer"', JSON.stringify(MOD))}\n${report}\n`);
  const args = ["run", "-A", "--config", join(ROOT, "deno.json"), script];
  const { stdout } = await run(Deno.execPath(), args, { cwd: folder.path });
  assert.equal(stdout, "4096 true 4096\n");
});
