/**
 * Writes a model with the weights that llama.cpp's quantiser makes of its layers, and prints their formats.
 *
 *   deno run -A examples/study/llama_cpp.ts <model> Q4_0|Q3_K_S|Q3_K_M -o folder
 */
import { Argument, Command, CommanderError } from "commander";
import process from "node:process";
import { threadsOption } from "../../cli/arguments.ts";
import { endWithReader, reportFailure } from "../../cli/failure.ts";
import { bytesText, printable } from "../../cli/terminal.ts";
import { formatsText, LLAMA_TYPES, type LlamaType, quantizeModel } from "./llama_weights.ts";

interface Options {
  readonly output: string;
  readonly threads: number;
}

async function convert(model: string, type: LlamaType, { output, threads }: Options): Promise<void> {
  const summary = await quantizeModel(model, type, output, threads);
  const bits = (8 * summary.bytes / summary.weights).toFixed(2);
  process.stdout.write(
    `${printable(output)}: ${formatsText(summary)}; ${bytesText(summary.bytes)}, ${bits} bits a weight\n`,
  );
}

endWithReader();
try {
  const command = new Command("llama_cpp").exitOverride()
    .description(
      "A model with its layers quantised by llama.cpp (node-llama-cpp, which npm installs once), as numbers.",
    )
    .argument("<model>", "a Hugging Face model")
    .addArgument(new Argument("<type>", "llama.cpp's type").choices(Object.keys(LLAMA_TYPES)))
    .requiredOption("-o, --output <folder>", "for the model")
    .addOption(threadsOption())
    .option("--debug", "print stack traces of errors")
    .action(convert);
  await command.parseAsync();
} catch (error) {
  // Commander has already written its message, or the help that was asked for.
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2;
  else process.exitCode = reportFailure(error, process.argv.includes("--debug"));
}
