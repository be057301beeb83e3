/**
 * Command lines, run as a user runs them: each is a process of its own. The first word is the program, hcinfer or deno, as a user
 * has it; it is this process's own that runs.
 */
import { execFile } from "node:child_process";
import { basename, isAbsolute, relative } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { Interrupted } from "../../cli/interrupted.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** What Deno is told of each program before its arguments. */
const PROGRAMS = { hcinfer: ["run", "-A", "main.ts"], deno: [] } as const;

export type Command = readonly [keyof typeof PROGRAMS, ...string[]];

/** A command that failed; the message is what it said. */
export class CommandFailed extends Error {
  override readonly name = "CommandFailed";
}

/** Most that a command prints: eval --json takes a few kilobytes. */
const MOST_OUTPUT_BYTES = 2 ** 24;

/** Exit codes of a command that was interrupted, by the signal. */
const INTERRUPTED = new Map([[130, 2], [143, 15]]);

/**
 * What a command writes to standard output, in the repository's root.
 * @throws {CommandFailed} when it fails
 * @throws {Interrupted} when it was interrupted; the signal's reason, when that ended it
 */
export async function run([program, ...args]: Command, signal: AbortSignal): Promise<string> {
  const words = [...PROGRAMS[program], ...args];
  const options = { cwd: ROOT, maxBuffer: MOST_OUTPUT_BYTES, signal };
  const { error, out, err } = await new Promise<{ error: Error | null; out: string; err: string }>((
    resolve,
  ) => execFile(process.execPath, words, options, (error, out, err) => resolve({ error, out, err })));
  signal.throwIfAborted();
  if (error === null) return out;
  const interrupted = "code" in error ? INTERRUPTED.get(Number(error.code)) : undefined;
  if (interrupted !== undefined) throw new Interrupted(interrupted);
  const lines = err.trim().split("\n");
  const said = lines.find((line) => line.startsWith("error: ")) ?? lines.at(-1) ?? "";
  throw new CommandFailed(said.replace(/^error: /, "") || error.message);
}

/**
 * The command line as anybody can type it in the repository's root: files elsewhere, which lie somewhere else on every machine,
 * are shown as `path/to/name`.
 */
export function commandLine(command: Command): string {
  const shown = command.map((word) => {
    const path = isAbsolute(word) ? elsewhere(word) : word;
    return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", `'\\''`)}'`;
  });
  return shown.join(" ");
}

function elsewhere(path: string): string {
  return isInRepository(path) ? relative(ROOT, path) : `path/to/${basename(path)}`;
}

function isInRepository(path: string): boolean {
  return !relative(ROOT, path).startsWith("..");
}
