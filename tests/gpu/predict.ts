/** What the null executor predicts for machines that are not here. Nothing of it was measured. */
import { table } from "./report.ts";
import { predictPlan } from "../../compiler/inspect.ts";
import { PROFILES } from "../../compiler/profile.ts";
import { figures } from "../../cli/summary.ts";
import { percentText } from "../../cli/terminal.ts";
import { LLAMA_8B, planRandomModel } from "../bench/random_bundle.ts";
import { AS_MUCH_AS_HIDES } from "./corrections.ts";

const MACHINES = ["rtx-4060-laptop", "rtx-4090", "h200"] as const;

/** A Markdown table of Llama-3.1-8B's shape in q4 on each machine. */
export async function predictions(): Promise<string> {
  const columns: string[][] = [];
  for (const name of MACHINES) {
    const profile = PROFILES[name];
    const budget = AS_MUCH_AS_HIDES;
    const model = { shape: LLAMA_8B, weights: "q4", head: "q4", correct: "sparse", budget, profile } as const;
    const { plan } = await planRandomModel(model);
    const { modes, device, context } = predictPlan(plan);
    const mode = (which: "off" | "async") => modes.find(({ mode }) => mode === which);
    const without = mode("off"), beside = mode("async");
    const { backboneBytes, headBytes, correctionBytesRead: read } = figures(plan);
    const onCpu = plan.graph.nodes.filter(({ placement }) =>
      placement.device === "cpu" && placement.lane !== "compensation"
    ).length;
    columns.push([
      name,
      profile.gpu.name,
      `${profile.gpu.readBandwidth} GB/s`,
      `${((backboneBytes + headBytes) / 1e9).toFixed(2)} GB`,
      device === null ? "none" : `${(device.total / 2 ** 30).toFixed(2)} GiB`,
      `${onCpu} of ${plan.graph.nodes.length}`,
      stepText(without, context),
      `${(read / 1e6).toPrecision(3)} MB a token (${percentText(read / backboneBytes)} of the backbone's)`,
      stepText(beside, context),
      without && beside ? `${(without.microseconds / beside.microseconds).toFixed(3)}x` : "-",
      plan.corrections.prefill,
    ]);
  }
  const names = [
    "profile",
    "GPU",
    "its memory's bandwidth",
    "weights, q4 in groups of 64",
    "GPU memory taken",
    "backbone nodes left to the CPU",
    "decode step without corrections",
    "sparse corrections that hide",
    "decode step with them, asynchronous",
    "speed of decoding with them over without",
    "a prompt's corrections",
  ];
  return table(
    [names[0]!, ...columns.map((column) => column[0]!)],
    names.slice(1).map((name, i) => [name, ...columns.map((column) => column[i + 1]!)]),
  );
}

function stepText(
  mode: { readonly microseconds: number; readonly tokensPerSecond: number } | undefined,
  context: number,
): string {
  if (mode === undefined) return "-";
  return `${
    (mode.microseconds / 1000).toPrecision(3)
  } ms, ${mode.tokensPerSecond} tokens/s (${context} cached)`;
}
