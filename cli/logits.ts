/** hcinfer logits: the model's raw outputs, for comparisons. */
import { Command, Option } from "commander";
import process from "node:process";
import { layoutSafetensors } from "../compiler/weights/safetensors.ts";
import type { StepKind } from "../runtime/executor.ts";
import { asOption, type RunOptions, tokenIds, withRunOptions } from "./arguments.ts";
import { abortable } from "./interrupted.ts";
import { OpenModel } from "./opening.ts";
import { writeFile } from "./output.ts";
import { printable } from "./terminal.ts";

export function logitsCommand(): Command {
  return withRunOptions(
    new Command("logits")
      .description(
        "Write the logits of some tokens as safetensors: one F32 tensor logits [tokens, vocabulary].",
      )
      .argument("<bundle>", "folder that compile wrote")
      .addOption(new Option("--tokens <ids>", "token ids, 1,2,3").argParser(tokenIds).makeOptionMandatory())
      .requiredOption(
        "-o, --output <file>",
        "file to write; a link is followed, and only an ordinary file replaced",
      )
      .addOption(asOption())
      .addHelpText("after", "\nExample:\n  hcinfer logits bundles/tiny --tokens 12,400,7 -o out.safetensors")
      .action(logits),
  );
}

interface Options extends RunOptions {
  readonly tokens: Int32Array;
  readonly output: string;
  readonly as: StepKind;
}

async function logits(path: string, options: Options): Promise<void> {
  const { tokens, as } = options;
  using model = OpenModel.open(path, options);
  const { capacity, model: { vocabularySize } } = model.executor;
  const layout = layoutSafetensors([{
    name: "logits",
    dtype: "F32",
    shape: [tokens.length, vocabularySize],
  }]);
  await abortable((signal) =>
    writeFile(options.output, async (append) => {
      append(layout.header);
      const sequence = model.executor.sequence();
      for (let position = 0; position < tokens.length; position += capacity) {
        const step = tokens.subarray(position, position + capacity);
        const run = { sequence, position, tokens: step, as, logits: "all" } as const;
        for (const rows of await model.executor.stepAsync({ runs: [run] }, signal)) {
          append(new Uint8Array(rows.buffer, rows.byteOffset, rows.byteLength));
        }
      }
    })
  );
  process.stderr.write(`wrote ${printable(options.output)}: logits [${tokens.length},${vocabularySize}]\n`);
}
