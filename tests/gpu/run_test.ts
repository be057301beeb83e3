/** `deno task gpu` itself, on the simulator, and its table. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { temporary } from "../command_line.ts";
import { gpuProblem } from "../../runtime/gpu_problem.ts";
import { measuredTable, SECTIONS, table, withSection } from "./report.ts";

const RUN = fileURLToPath(new URL("./run.ts", import.meta.url));
const RESULTS = fileURLToPath(new URL("./RESULTS.md", import.meta.url));

function run(
  args: readonly string[],
  env: Record<string, string>,
): Promise<{ code: number; out: string; err: string }> {
  return new Promise((resolve) => {
    const options = { env: { ...process.env, ...env } };
    execFile(Deno.execPath(), ["run", "-A", "--no-check", RUN, ...args], options, (error, out, err) => {
      resolve({ code: error === null ? 0 : Number(error.code), out, err });
    });
  });
}

Deno.test("every part runs on the simulator, and nothing is written", async () => {
  const before = Deno.readTextFileSync(RESULTS);
  using cache = temporary();
  const env = { HCINFER_CUDA: "sim", HCINFER_BENCH_CACHE: cache.path };
  const { code, out, err } = await run(["--smoke"], env);
  assert.equal(code, 0, err);
  const missing = out.split("\n").filter((line) => line.includes("not measured"));
  const expected = /PyTorch|llama\.cpp|compute-sanitizer|stream memory operations/;
  assert.deepEqual(missing.filter((line) => !expected.test(line)), [], err);
  assert.match(out, /\| q4 32 x 128 \| .* GB\/s/);
  assert.match(out, /of the norm apart, same bits/);
  assert.match(out, /\| sparse, .*x of without \| 0\.95x \|/);
  assert.equal(Deno.readTextFileSync(RESULTS), before);
});

Deno.test("without a GPU it says why, and what is no part is refused", {
  ignore: gpuProblem() === undefined,
}, async () => {
  const without = await run([], { HCINFER_CUDA: "" });
  assert.equal(without.code, 6);
  assert.match(without.err, /^error: no NVIDIA driver/);
  const unknown = await run(["--only", "speed"], { HCINFER_CUDA: "sim" });
  assert.equal(unknown.code, 2);
  assert.match(unknown.err, /speed is no part; the parts are device, parity/);
});

Deno.test("a section is replaced, and the rest of the document stays", () => {
  const document = "a\n<!-- measured -->\nold\n<!-- /measured -->\nb\n";
  assert.equal(withSection(document, "measured", "new\n"), document.replace("old", "new"));
  assert.throws(() => withSection("a", "measured", "new"), /has no part between/);
  for (const section of SECTIONS) withSection(Deno.readTextFileSync(RESULTS), section, "");
});

Deno.test("tables", () => {
  assert.equal(table(["a", "b"], [["1|2", "3"]]), "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |");
  const rows = [{ what: "speed", found: "9", target: "10" }, { what: "more", found: "1" }];
  assert.match(
    measuredTable([{ title: "Part", rows }]),
    /\| \*\*Part\*\* \|.*\n\| speed \| 9 \| 10 \|\n\| more/,
  );
});
