#!/usr/bin/env node
/**
 * The command line. Each command is a file in cli/. Errors a user can cause go to standard error without a stack
 * trace (--debug shows it) and decide the exit code (compiler/errors.ts).
 */
import { Command, CommanderError } from "commander";
import process from "node:process";
import { endWithReader, reportFailure } from "./cli/failure.ts";
import { printable } from "./cli/terminal.ts";
import manifest from "./deno.json" with { type: "json" };

const USAGE = 2;

/** In the order of the help. A command that is named is loaded alone, which takes half the time. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  compile: async () => (await import("./cli/compile.ts")).compileCommand(),
  calibrate: async () => (await import("./cli/calibrate.ts")).calibrateCommand(),
  run: async () => (await import("./cli/run.ts")).runCommand(),
  chat: async () => (await import("./cli/chat.ts")).chatCommand(),
  serve: async () => (await import("./cli/serve.ts")).serveCommand(),
  rebudget: async () => (await import("./cli/rebudget.ts")).rebudgetCommand(),
  inspect: async () => (await import("./cli/inspect.ts")).inspectCommand(),
  eval: async () => (await import("./cli/eval.ts")).evalCommand(),
  tasks: async () => (await import("./cli/tasks.ts")).tasksCommand(),
  logits: async () => (await import("./cli/logits.ts")).logitsCommand(),
  profile: async () => (await import("./cli/profile.ts")).profileCommand(),
  bench: async () => (await import("./cli/bench.ts")).benchCommand(),
};

async function program(args: readonly string[]): Promise<Command> {
  const name = args.find((arg) => !arg.startsWith("-")) ?? "";
  const named = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  const loaded = named ? [named] : Object.values(COMMANDS);
  const commands = await Promise.all(loaded.map((load) => load()));
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
  hcinfer chat bundles/tiny
  hcinfer help compile

Exit codes: 2 options, 3 model description, 4 checkpoint, 5 bundle, 6 environment,
7 input, 130 interrupted, 143 terminated,\n1 anything else.`,
    );
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
    await (await program(args)).parseAsync([...args], { from: "user" });
    return 0;
  } catch (error) {
    // Commander has already written its message, or the help that was asked for.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE;
    return reportFailure(error, args.includes("--debug"));
  }
}

endWithReader();
process.exitCode = await main(process.argv.slice(2));
