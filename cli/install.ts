/**
 * deno task install: puts a launcher, a script of a few lines, into a folder of programs. It runs this clone with the Deno
 * that installed it, from wherever it is called.
 */
import { Command, Option } from "commander";
import { chmodSync, existsSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { HcinferError } from "../compiler/errors.ts";
import { reportFailure } from "./failure.ts";
import { writeFile } from "./output.ts";
import { printable } from "./terminal.ts";

const NAME = "hcinfer";
/** By it an earlier launcher is known, which may be replaced. */
const MARK = "# The launcher of hcinfer, written by deno task install.";

/**
 * A POSIX shell script that runs the clone at `home`.
 *
 * npm packages are taken as they lie in the clone (--node-modules-dir=manual): to look whether they are current takes a
 * tenth of the time of a start.
 */
export function launcher(home: string, deno: string): string {
  const environment = new HcinferError("environment", "").exitCode;
  return `#!/bin/sh
${MARK}
home=${quoted(home)}
deno=${quoted(deno)}
if [ ! -f "$home/main.ts" ]; then
  echo "error: hcinfer is not at $home any more: run deno task install in the folder where it is" >&2
  exit ${environment}
fi
if [ ! -x "$deno" ]; then
  if ! deno=$(command -v deno); then
    echo "error: Deno is not at ${doubleQuoted(deno)} any more: run npx -y deno task install in $home" >&2
    exit ${environment}
  fi
fi
exec "$deno" run -A --node-modules-dir=manual --config "$home/deno.json" "$home/main.ts" "$@"
`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function doubleQuoted(text: string): string {
  return text.replaceAll(/["$\`\\]/g, "\\$&");
}

/**
 * Writes the launcher into `folder`; returns its path.
 * @throws {HcinferError} "environment": another program of this name is there, or the folder cannot be written
 */
export async function install(folder: string, home: string, deno: string): Promise<string> {
  const path = join(resolve(folder), NAME);
  try {
    mkdirSync(folder, { recursive: true });
  } catch (cause) {
    throw new HcinferError("environment", `cannot make ${folder}: ${(cause as Error).message}`, { cause });
  }
  const isOther = existsSync(path) && !(statSync(path).isFile() && readFileSync(path, "utf8").includes(MARK));
  if (isOther) {
    throw new HcinferError(
      "environment",
      `${path} is another program: give another folder with --dir, or remove it`,
    );
  }
  await writeFile(path, (append) => append(new TextEncoder().encode(launcher(home, deno))));
  chmodSync(path, 0o755);
  return path;
}

async function main(args: readonly string[]): Promise<void> {
  const standard = process.env["HCINFER_BIN"] || join(homedir(), ".local", "bin");
  const { dir } = new Command("deno task install")
    .description("Put the command hcinfer into a folder of programs; it runs this clone.")
    .addOption(new Option("--dir <folder>", "where to").default(standard, "$HCINFER_BIN or ~/.local/bin"))
    .addHelpText("after", "\nExample:\n  deno task install --dir ~/bin")
    .parse([...args], { from: "user" }).opts<{ dir: string }>();
  const path = await install(
    dir,
    fileURLToPath(new URL("..", import.meta.url)).replace(/\/$/, ""),
    process.execPath,
  );
  console.log(`wrote ${printable(path)}`);
  const folder = resolve(dir);
  if (
    (process.env["PATH"] ?? "").split(delimiter).some((entry) => entry !== "" && resolve(entry) === folder)
  ) {
    console.log("Now: hcinfer --help");
  } else {
    console.log(`${printable(folder)} is not on your PATH; to have hcinfer everywhere, add to ~/.profile:`);
    console.log(`  export PATH="${printable(doubleQuoted(folder))}:$PATH"`);
  }
}

if (import.meta.main) {
  try {
    await main(process.argv.slice(2));
  } catch (error) {
    process.exitCode = reportFailure(error);
  }
}
