/** hcinfer logits: the model's raw outputs, for comparisons. */
import { Command, Option } from "commander";
import { closeSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import process from "node:process";
import { HcinferError } from "../compiler/errors.ts";
import { layoutSafetensors } from "../compiler/weights/safetensors.ts";
import type { StepKind } from "../runtime/executor.ts";
import { asOption, correctionsOption, type RunOptions, threadsOption, tokenIds } from "./arguments.ts";
import { OpenModel } from "./opening.ts";

export function logitsCommand(): Command {
  return new Command("logits")
    .description(
      "Write the logits of some tokens as safetensors: one F32 tensor logits [tokens, vocabulary].",
    )
    .argument("<bundle>", "folder that compile wrote")
    .addOption(new Option("--tokens <ids>", "token ids, 1,2,3").argParser(tokenIds).makeOptionMandatory())
    .requiredOption("-o, --output <file>", "file to write")
    .addOption(asOption())
    .addOption(threadsOption())
    .addOption(correctionsOption())
    .addHelpText("after", "\nExample:\n  hcinfer logits bundles/tiny --tokens 12,400,7 -o out.safetensors")
    .action(logits);
}

interface Options extends RunOptions {
  readonly tokens: Int32Array;
  readonly output: string;
  readonly as: StepKind;
}

function logits(path: string, options: Options): void {
  const { tokens, threads, corrections, as } = options;
  using model = OpenModel.open(path, { threads, corrections });
  const { capacity, model: { vocabularySize } } = model.executor;
  const layout = layoutSafetensors([{
    name: "logits",
    dtype: "F32",
    shape: [tokens.length, vocabularySize],
  }]);
  const partial = `${options.output}.tmp`;
  try {
    const file = openSync(partial, "w");
    try {
      writeAll(file, layout.header);
      const sequence = model.executor.sequence();
      for (let position = 0; position < tokens.length; position += capacity) {
        const step = tokens.subarray(position, position + capacity);
        const run = { sequence, position, tokens: step, as, logits: "all" } as const;
        for (const rows of model.executor.step({ runs: [run] })) {
          writeAll(file, new Uint8Array(rows.buffer, rows.byteOffset, rows.byteLength));
        }
      }
    } finally {
      closeSync(file);
    }
    renameSync(partial, options.output);
  } catch (cause) {
    rmSync(partial, { force: true });
    if (cause instanceof HcinferError) throw cause;
    throw new HcinferError("environment", `${options.output}: ${(cause as Error).message}`, { cause });
  }
  process.stderr.write(`wrote ${options.output}: logits [${tokens.length},${vocabularySize}]\n`);
}

function writeAll(file: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) at += writeSync(file, bytes, at);
}
