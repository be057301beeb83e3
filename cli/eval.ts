/** hcinfer eval: perplexity on a text, and the divergence from a reference. */
import { Command, Option } from "commander";
import process from "node:process";
import { readRegularText } from "../compiler/files.ts";
import { tokenLoss } from "../runtime/executors/cpu/executor.ts";
import { evaluate } from "../runtime/evaluate.ts";
import type { StepKind } from "../runtime/executor.ts";
import { asOption, type RunOptions, whole, withRunOptions } from "./arguments.ts";
import { OpenModel } from "./opening.ts";
import { Progress } from "./terminal.ts";

export function evalCommand(): Command {
  return withRunOptions(
    new Command("eval")
      .description("Perplexity of a text, and the KL divergence from a reference, in windows of their own.")
      .argument("<bundle>", "folder that compile wrote")
      .requiredOption("--text <file>", "UTF-8 text")
      .option(
        "--reference <bundle>",
        "what to measure the divergence from, usually compiled with --weights bf16",
      )
      .addOption(asOption())
      .addOption(new Option("--window <n>", "tokens in a window").argParser(whole(2)).default(256))
      .addOption(new Option("--windows <n>", "most windows; all by default").argParser(whole()))
      .option("--json", "print {perplexity, kl, tokens}")
      .addHelpText(
        "after",
        `
Examples:
  hcinfer eval bundles/tiny --text examples/models/heldout.txt --windows 24
  hcinfer eval bundles/q3 --text heldout.txt --reference bundles/bf16 --json`,
      )
      .action(evaluateBundle),
  );
}

interface Options extends RunOptions {
  readonly text: string;
  readonly reference?: string;
  readonly as: StepKind;
  readonly window: number;
  readonly windows?: number;
  readonly json?: true;
}

async function evaluateBundle(path: string, options: Options): Promise<void> {
  const text = readRegularText(options.text);
  const { window } = options;
  const open = { ...options, contextLength: window };
  using model = OpenModel.open(path, open);
  // A limit of the GPU's memory is for both models together: then the reference leaves the GPU alone.
  const { gpuMemory, ...apart } = open;
  const referenceOptions = gpuMemory === undefined ? apart : { ...apart, device: "cpu" as const };
  using reference = options.reference ? OpenModel.open(options.reference, referenceOptions) : null;
  const tokens = model.tokenizer().encode(text, { addSpecialTokens: false });
  const progress = new Progress("eval");
  const result = await evaluate(model.executor, {
    tokens: options.windows ? tokens.subarray(0, options.windows * window) : tokens,
    window,
    as: options.as,
    ...(reference ? { reference: reference.executor } : {}),
    tokenLoss: (logits, expected, target) => tokenLoss(logits, target, expected),
    onProgress: (done, total) => progress.show(done, total, "tokens"),
  });
  progress.finish();
  const kl = result.divergence ?? null;
  if (options.json) {
    const { perplexity, predictions } = result;
    process.stdout.write(`${JSON.stringify({ perplexity, kl, tokens: predictions })}\n`);
    return;
  }
  const lines = [`perplexity ${result.perplexity.toFixed(3)}`];
  if (kl !== null) lines.push(`kl         ${kl.toFixed(6)} nats per token`);
  lines.push(`tokens     ${result.predictions} in ${result.windows} windows of ${window}`);
  process.stdout.write(`${lines.join("\n")}\n`);
}
