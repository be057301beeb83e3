/** How programs end when something failed: a message for a person, and an exit code for a script. */
import process from "node:process";
import { HcinferError } from "../compiler/errors.ts";
import { Interrupted } from "./interrupted.ts";
import { printable } from "./terminal.ts";

/** Writes the error to standard error, with its stack trace only when debugging; returns the exit code. */
export function reportFailure(error: unknown, debug = false): number {
  if (error instanceof Interrupted) return error.exitCode;
  process.stderr.write(`error: ${printable(error instanceof Error ? error.message : String(error))}\n`);
  if (debug && error instanceof Error) process.stderr.write(`${printable(error.stack ?? "")}\n`);
  if (error instanceof HcinferError) return error.exitCode;
  if (!debug) {
    process.stderr.write("This is not an error hcinfer expects; --debug shows where it comes from.\n");
  }
  return 1;
}

/** A reader that went away (`| head`) is no error: the program ends without a word. */
export function endWithReader(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    process.exit(0);
  });
}
