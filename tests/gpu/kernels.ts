/** What kernels must move, and what they take of a multiprocessor, worked out without one. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { bytesText } from "../../cli/terminal.ts";
import { costs, inputTypes } from "../../compiler/cost.ts";
import { paddedOutputs } from "../../compiler/ir/naming.ts";
import { values } from "../../compiler/ir/graph.ts";
import { PROFILES } from "../../compiler/profile.ts";
import { LLAMA_8B, planRandomModel } from "../bench/random_bundle.ts";
import { table } from "./report.ts";

const PTX = fileURLToPath(new URL("../../ffi/cuda/ptx.ts", import.meta.url));

/** Both tables. Throws where nvcc is missing, which tells the second. */
export async function kernels(): Promise<string> {
  const { stdout } = await promisify(execFile)(Deno.execPath(), ["run", "-A", PTX, "--report"], {
    maxBuffer: 2 ** 24,
  });
  return [
    "Instructions of a decode step of Llama-3.1-8B's shape in q4, and the bytes of weights, keys and values that each must read:",
    "",
    await bytesTable(),
    "",
    "Of `deno task ptx --report`, which compiles for GPUs without one: " + stdout.trim(),
  ].join("\n");
}

async function bytesTable(): Promise<string> {
  const profile = PROFILES["rtx-4090"];
  const model = { shape: LLAMA_8B, weights: "q4", head: "q4", correct: "none", profile } as const;
  const { plan: { graph } } = await planRandomModel({ ...model, budget: { kind: "bytes", share: 0.1 } });
  const types = values(graph), all = costs(graph);
  const kinds = new Map<string, { count: number; bytes: number; microseconds: number }>();
  graph.nodes.forEach((node, i) => {
    const cost = all[i]!;
    if (cost.instructions === 0) return;
    const key = node.op === "linear"
      ? `linear ${paddedOutputs(node.params.weights).total} x ${inputTypes(node, types)[0]!.shape.at(-1)}`
      : node.op;
    const { count } = kinds.get(key) ?? { count: 0 };
    kinds.set(key, {
      count: count + 1,
      bytes: cost.bytesRead,
      microseconds: node.placement.microseconds ?? 0,
    });
  });
  return table(
    ["instruction", "in a step", "bytes", `predicted on the ${profile.gpu.name}`],
    [...kinds].map(([name, { count, bytes, microseconds }]) => [
      name,
      `${count}`,
      bytesText(bytes),
      `${microseconds.toFixed(1)} us`,
    ]),
  );
}
