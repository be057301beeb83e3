/**
 * Compiles sources into objects and links them into a library; only what is out of date. An object is compiled again when its
 * source, a header it included (-MMD) or the command changed. Outputs are renamed into place, so an interrupted build leaves
 * nothing half written. The compiler is $CXX, or the first of g++, clang++, c++.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { availableParallelism, platform } from "node:os";
import { basename, dirname, relative } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { HcinferError } from "../compiler/errors.ts";

const run = promisify(execFile);

export interface Compilation {
  readonly object: string;
  readonly args: readonly string[];
}

function modified(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Infinity;
}

/** The files a compiler listed in a -MMD depfile: `object: source header \<newline> header`. */
function dependencies(depfile: string): string[] {
  const text = readFileSync(depfile, "utf8");
  return text.slice(text.indexOf(":") + 1).replaceAll("\\\n", " ").split(/(?<!\\)\s+/).filter(Boolean)
    .map((path) => path.replaceAll("\\ ", " "));
}

function isStale(object: string, hash: string): boolean {
  const [depfile, record] = [`${object}.d`, `${object}.hash`];
  if (![object, depfile, record].every((path) => existsSync(path))) return true;
  if (readFileSync(record, "utf8") !== hash) return true;
  const built = modified(object);
  return dependencies(depfile).some((path) => modified(path) > built);
}

/** Writes a generated file when its text changed, so that what includes it is not compiled again without need. */
export function writeChanged(path: string, text: string): void {
  if (existsSync(path) && readFileSync(path, "utf8") === text) return;
  mkdirSync(dirname(path), { recursive: true });
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, text);
  renameSync(temporary, path);
}

async function compile(compiler: string, unit: Compilation, hash: string): Promise<void> {
  const temporary = `${unit.object}.${process.pid}.tmp`;
  try {
    await invoke(compiler, [...unit.args, "-MMD", "-MF", `${temporary}.d`, "-o", temporary]);
    renameSync(`${temporary}.d`, `${unit.object}.d`);
    writeFileSync(`${unit.object}.hash`, hash);
    renameSync(temporary, unit.object);
  } finally {
    for (const path of [temporary, `${temporary}.d`]) rmSync(path, { force: true });
  }
}

async function invoke(compiler: string, args: readonly string[]): Promise<void> {
  try {
    await run(compiler, [...args], { maxBuffer: 1 << 26 });
  } catch (error) {
    const { stderr, message } = error as { stderr?: string; message: string };
    const command = [compiler, ...args].join(" ");
    throw new HcinferError(
      "environment",
      `the native library does not compile\n${command}\n${stderr || message}`,
    );
  }
}

async function findCompiler(): Promise<{ compiler: string; version: string }> {
  const chosen = process.env["CXX"];
  for (const compiler of chosen ? [chosen] : ["g++", "clang++", "c++"]) {
    try {
      const { stdout } = await run(compiler, ["--version"]);
      return { compiler, version: stdout };
    } catch {
      // Not installed under this name.
    }
  }
  const found = chosen
    ? `CXX=${chosen} does not run`
    : "no C++ compiler found (looked for g++, clang++, c++)";
  let release = "";
  if (existsSync("/etc/os-release")) release = readFileSync("/etc/os-release", "utf8");
  throw new HcinferError("environment", `${found}\n${installInstructions(platform(), release)}`);
}

/** How to install a compiler on this system; `release` is the text of /etc/os-release. */
export function installInstructions(system: string, release: string): string {
  if (system === "darwin") return "install one with: xcode-select --install";
  if (system === "win32") return "Windows is not supported; use WSL 2 with Ubuntu";
  const ids = [...release.matchAll(/^(?:ID|ID_LIKE)="?([^"\n]*)"?$/gm)].flatMap((match) =>
    match[1]!.split(" ")
  );
  const command = ids.map((id) => INSTALL[id]).find((text) => text !== undefined);
  return command
    ? `install one with: ${command}`
    : "install g++ 11 or newer (or clang 14 or newer) with your system's package manager, or set CXX to its path";
}

const INSTALL: Readonly<Record<string, string>> = {
  debian: "sudo apt-get update && sudo apt-get install -y g++",
  ubuntu: "sudo apt-get update && sudo apt-get install -y g++",
  fedora: "sudo dnf install -y gcc-c++",
  rhel: "sudo dnf install -y gcc-c++",
  arch: "sudo pacman -S --needed gcc",
  alpine: "sudo apk add g++",
  suse: "sudo zypper install -y gcc-c++",
  opensuse: "sudo zypper install -y gcc-c++",
};

export interface Library {
  readonly path: string;
  readonly units: readonly Compilation[];
  /** For the linker, before the objects. */
  readonly link: readonly string[];
  /** For the linker, after the objects. */
  readonly libraries?: readonly string[];
  /** Functions that are nowhere defined are no error: sanitizers leave their runtime to the program. */
  readonly partial?: boolean;
}

/** Builds what is out of date. Throws HcinferError when there is no compiler or a source does not compile. */
export async function buildLibrary(
  { path, units, link, libraries = [], partial = false }: Library,
): Promise<void> {
  const { compiler, version } = await findCompiler();
  const hashOf = (args: readonly string[]) =>
    createHash("sha256").update(JSON.stringify([compiler, version, args])).digest("hex");

  const stale = units.filter((unit) => isStale(unit.object, hashOf(unit.args)));
  const show = progress();
  let started = 0;
  let failure: unknown;
  const worker = async () => {
    while (started < stale.length && failure === undefined) {
      const unit = stale[started++]!;
      show(`compiling ${started}/${stale.length} ${basename(unit.object, ".o")}`);
      try {
        await compile(compiler, unit, hashOf(unit.args));
      } catch (error) {
        failure ??= error;
      }
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  if (failure !== undefined) throw failure;

  // A function that is declared but nowhere defined fails here, not when the library is opened.
  const complete = platform() === "linux" && !partial ? ["-Wl,--no-undefined"] : [];
  const objects = units.map((unit) => unit.object);
  const linkArgs = ["-shared", "-pthread", ...link, ...complete, ...objects, ...libraries];
  const linkHash = hashOf(linkArgs);
  const record = `${path}.hash`;
  const linked = existsSync(path) && existsSync(record) && readFileSync(record, "utf8") === linkHash &&
    objects.every((object) => modified(object) <= modified(path));
  if (linked) return;
  show(`linking ${basename(path)}`);
  const temporary = `${path}.${process.pid}.tmp`;
  await invoke(compiler, [...linkArgs, "-o", temporary]);
  writeFileSync(record, linkHash);
  renameSync(temporary, path);
  show(`built ${relative(process.cwd(), path)} with ${compiler}`, true);
}

/** One line on a terminal, rewritten; lines elsewhere. */
function progress(): (text: string, last?: boolean) => void {
  const terminal = process.stderr.isTTY;
  return (text, last = false) =>
    process.stderr.write(terminal ? `\r\x1b[K${text}${last ? "\n" : ""}` : `${text}\n`);
}
