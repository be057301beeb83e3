/**
 * Compiles sources into objects and links them into a library; only what is out of date. An object is compiled again when the
 * text of its source or of a header it included (-MMD), or the command changed: not when files are copied or moved, since
 * commands run in a folder that they name all others from. Outputs are renamed into place, so an interrupted build leaves
 * nothing half written. The compiler is $CXX, or the first of g++, clang++, c++; where nothing is out of date, none is needed.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, platform } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { HcinferError } from "../compiler/errors.ts";

const run = promisify(execFile);

export interface Compilation {
  readonly object: string;
  /** Of the compiler, but for the outputs; files are named from the library's `root`. */
  readonly args: readonly string[];
}

interface Compiler {
  readonly name: string;
  readonly version: string;
}

/** What an object or a library was made of and by, as JSON beside it. */
interface Made {
  readonly compiler: string;
  /** Of the command and the text of all files that went into it. */
  readonly from: string;
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

function madeOf(output: string): Made | undefined {
  const record = `${output}.made`;
  if (!existsSync(output) || !existsSync(record)) return undefined;
  return JSON.parse(readFileSync(record, "utf8")) as Made;
}

/** Without a compiler, what another one made is as good. */
function isCurrent(output: string, from: string, compiler: Compiler | undefined): boolean {
  const made = madeOf(output);
  return made?.from === from && (compiler === undefined || made.compiler === sha256(compiler.version));
}

/** The files a compiler listed in a -MMD depfile: `object: source header \<newline> header`. */
function dependencies(depfile: string): string[] {
  if (!existsSync(depfile)) return [];
  const text = readFileSync(depfile, "utf8");
  return text.slice(text.indexOf(":") + 1).replaceAll("\\\n", " ").split(/(?<!\\)\s+/).filter(Boolean)
    .map((path) => path.replaceAll("\\ ", " "));
}

/** Of a command and the text of the files that the compiler read for it last time. */
function sourcesOf({ object, args }: Compilation, root: string): string {
  const texts = dependencies(`${object}.d`).map((path) => {
    const file = join(root, path);
    return existsSync(file) ? sha256(readFileSync(file, "utf8")) : "";
  });
  return sha256(JSON.stringify([args, texts]));
}

/** Writes a generated file when its text changed, so that what includes it is not compiled again without need. */
export function writeChanged(path: string, text: string): void {
  if (existsSync(path) && readFileSync(path, "utf8") === text) return;
  mkdirSync(dirname(path), { recursive: true });
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, text);
  renameSync(temporary, path);
}

async function compile(compiler: Compiler, unit: Compilation, root: string): Promise<void> {
  const temporary = `${unit.object}.${process.pid}.tmp`;
  try {
    await invoke(compiler, [...unit.args, "-MMD", "-MF", `${temporary}.d`, "-o", temporary], root);
    renameSync(`${temporary}.d`, `${unit.object}.d`);
    renameSync(temporary, unit.object);
    record(unit.object, { compiler: sha256(compiler.version), from: sourcesOf(unit, root) });
  } finally {
    for (const path of [temporary, `${temporary}.d`]) rmSync(path, { force: true });
  }
}

function record(output: string, made: Made): void {
  writeFileSync(`${output}.made`, JSON.stringify(made));
}

async function invoke({ name }: Compiler, args: readonly string[], root: string): Promise<void> {
  try {
    await run(name, [...args], { maxBuffer: 1 << 26, cwd: root });
  } catch (error) {
    const { stderr, message } = error as { stderr?: string; message: string };
    const command = [name, ...args].join(" ");
    throw new HcinferError(
      "environment",
      `the native library does not compile\n${command}\n${stderr || message}`,
    );
  }
}

/** The compiler there is, or why there is none. */
async function findCompiler(): Promise<Compiler | HcinferError> {
  const chosen = process.env["CXX"];
  for (const name of chosen ? [chosen] : ["g++", "clang++", "c++"]) {
    try {
      const { stdout } = await run(name, ["--version"]);
      return { name, version: `${name} ${stdout}` };
    } catch {
      // Not installed under this name.
    }
  }
  const found = chosen
    ? `CXX=${chosen} does not run`
    : "no C++ compiler found (looked for g++, clang++, c++)";
  let release = "";
  if (existsSync("/etc/os-release")) release = readFileSync("/etc/os-release", "utf8");
  return new HcinferError("environment", `${found}\n${installInstructions(platform(), release)}`);
}

export async function hasCompiler(): Promise<boolean> {
  return !(await findCompiler() instanceof HcinferError);
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
  /** The folder that compilers run in. */
  readonly root: string;
  readonly units: readonly Compilation[];
  /** For the linker, before the objects. */
  readonly link: readonly string[];
  /** For the linker, after the objects. */
  readonly libraries?: readonly string[];
  /** Functions that are nowhere defined are no error: sanitizers leave their runtime to the program. */
  readonly partial?: boolean;
}

/** Builds what is out of date. Throws HcinferError when there is no compiler for it or a source does not compile. */
export async function buildLibrary(library: Library): Promise<void> {
  const { path, root, units } = library;
  const found = await findCompiler();
  const compiler = found instanceof HcinferError ? undefined : found;
  const needed = () => {
    if (found instanceof HcinferError) throw found;
    return found;
  };
  const stale = units.filter((unit) => !isCurrent(unit.object, sourcesOf(unit, root), compiler));
  const show = progress();
  let started = 0;
  let failure: unknown;
  const worker = async () => {
    while (started < stale.length && failure === undefined) {
      const unit = stale[started++]!;
      try {
        const compiler = needed();
        show(`compiling ${started}/${stale.length} ${basename(unit.object, ".o")}`);
        await compile(compiler, unit, root);
      } catch (error) {
        failure ??= error;
      }
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  if (failure !== undefined) throw failure;

  const args = linkArgs(library);
  const from = sha256(JSON.stringify([args, units.map((unit) => madeOf(unit.object)?.from)]));
  if (isCurrent(path, from, compiler)) return;
  const linker = needed();
  show(`linking ${basename(path)}`);
  const temporary = `${path}.${process.pid}.tmp`;
  await invoke(linker, [...args, "-o", temporary], root);
  renameSync(temporary, path);
  record(path, { compiler: sha256(linker.version), from });
  show(`built ${relative(process.cwd(), path)} with ${linker.name}`, true);
}

function linkArgs({ root, units, link, libraries = [], partial = false }: Library): string[] {
  // A function that is declared but nowhere defined fails here, not when the library is opened.
  const complete = platform() === "linux" && !partial ? ["-Wl,--no-undefined"] : [];
  const objects = units.map((unit) => relative(root, unit.object));
  return ["-shared", "-pthread", ...link, ...complete, ...objects, ...libraries];
}

/** One line on a terminal, rewritten; lines elsewhere. */
function progress(): (text: string, last?: boolean) => void {
  const terminal = process.stderr.isTTY;
  return (text, last = false) =>
    process.stderr.write(terminal ? `\r\x1b[K${text}${last ? "\n" : ""}` : `${text}\n`);
}
