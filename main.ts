#!/usr/bin/env node
/**
 * The command line. Each command is a file in cli/. Errors a user can cause go to standard error without a stack
 * trace (--debug shows it) and decide the exit code (compiler/errors.ts).
 */
import { Command, CommanderError } from "commander";
import process from "node:process";
import { benchCommand } from "./cli/bench.ts";
import { calibrateCommand } from "./cli/calibrate.ts";
import { chatCommand } from "./cli/chat.ts";
import { compileCommand } from "./cli/compile.ts";
import { evalCommand } from "./cli/eval.ts";
import { endWithReader, reportFailure } from "./cli/failure.ts";
import { inspectCommand } from "./cli/inspect.ts";
import { logitsCommand } from "./cli/logits.ts";
import { profileCommand } from "./cli/profile.ts";
import { rebudgetCommand } from "./cli/rebudget.ts";
import { runCommand } from "./cli/run.ts";
import { tasksCommand } from "./cli/tasks.ts";
import { printable } from "./cli/terminal.ts";
import manifest from "./deno.json" with { type: "json" };

const USAGE = 2;

function program(): Command {
  const root = new Command("hcinfer")
    .description(
      "Compiles language models to a compressed backbone with corrections beside it, and runs them.",
    )
    .version(manifest.version)
    .option("--debug", "print stack traces of errors")
    .addHelpText(
      "after",
      `
Examples:
  hcinfer compile examples/models/tiny-dense -o bundles/tiny --weights q3
  hcinfer run bundles/tiny "The compiler" --max-tokens 64 --temperature 0.8
  hcinfer help compile

Exit codes: 2 options, 3 model description, 4 checkpoint, 5 bundle, 6 environment,
7 input, 130 interrupted, 143 terminated,\n1 anything else.`,
    );
  const commands = [
    compileCommand(),
    calibrateCommand(),
    runCommand(),
    chatCommand(),
    rebudgetCommand(),
    inspectCommand(),
    evalCommand(),
    tasksCommand(),
    logitsCommand(),
    profileCommand(),
    benchCommand(),
  ];
  for (const command of commands) root.addCommand(command.option("--debug", "print stack traces of errors"));
  for (const command of [root, ...commands]) {
    command.exitOverride().configureOutput({
      getOutHelpWidth: () => 80,
      getErrHelpWidth: () => 80,
      writeErr: (text) => process.stderr.write(printable(text)),
    });
  }
  return root;
}

/** Runs one command line; returns the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  try {
    await program().parseAsync([...args], { from: "user" });
    return 0;
  } catch (error) {
    // Commander has already written its message, or the help that was asked for.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE;
    return reportFailure(error, args.includes("--debug"));
  }
}

endWithReader();
process.exitCode = await main(process.argv.slice(2));
