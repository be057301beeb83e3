/**
 * Compiles the native library: ffi/simd/*.cpp and ffi/cuda/*.cpp into ffi/build/libhcinfer.so (.dylib on macOS). Run by `deno task
 * build`; prints only when there is something to do.
 *
 *   deno task build [--sanitize address|thread|undefined|address,undefined]
 *
 * Kernels (sources in namespace hc::HC_ISA) are compiled once per instruction set of this processor family and chosen
 * at run time; everything else once, for the family's baseline. An object is compiled again when its source, a header it
 * included (-MMD) or the command changed. Outputs are renamed into place, so an interrupted build leaves nothing half
 * written. The compiler is $CXX, or the first of g++, clang++, c++.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { arch, availableParallelism, platform } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { HcinferError } from "../compiler/errors.ts";
import { cppHeader } from "./cpp_header.ts";

const FFI = dirname(fileURLToPath(import.meta.url));
const SOURCES = [join(FFI, "simd"), join(FFI, "cuda")];
const GENERATED = join(FFI, "build");

/** Where the library lies; `sanitize` names a build of its own. */
export function libraryPath(sanitize?: Sanitizer): string {
  const name = platform() === "darwin" ? "libhcinfer.dylib" : "libhcinfer.so";
  return join(FFI, "build", ...(sanitize ? [`sanitize-${sanitize}`] : []), name);
}

const SANITIZERS = ["address", "thread", "undefined", "address,undefined"] as const;
type Sanitizer = typeof SANITIZERS[number];

/** What a source compiled once per instruction set, with -DHC_ISA=<name>, contains. */
const VARIANT_MARK = "namespace hc::HC_ISA";

// GCC 12 warns of its own header's _mm512_undefined_ps where an intrinsic is inlined (GCC bug 105593).
const AVX512 = [
  "-Wno-uninitialized",
  "-mavx512f",
  "-mavx512bw",
  "-mavx512dq",
  "-mavx512vl",
  "-mfma",
  "-mf16c",
];
const VARIANTS: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>> = {
  x64: {
    avx512vnni: [...AVX512, "-mavx512vnni"],
    avx512: AVX512,
    avx2: ["-mavx2", "-mfma", "-mf16c"],
    scalar: [],
  },
  arm64: { neon: [], scalar: [] },
};

// -ffp-contract=off: a fused multiply-add is used only where one is written, so that variants agree bit for bit.
const FLAGS =
  "-std=c++20 -O3 -Wall -Wextra -Werror -fPIC -ffp-contract=off -fno-math-errno -fvisibility=hidden -pthread";

const run = promisify(execFile);

interface Compilation {
  readonly object: string;
  readonly args: readonly string[];
}

function compilations(
  sources: readonly string[],
  folder: string,
  extra: readonly string[],
): Compilation[] {
  const variants = VARIANTS[arch()] ?? { scalar: [] };
  const common = [...FLAGS.split(" "), `-I${GENERATED}`, ...extra];
  const files = sources.flatMap((sources) =>
    readdirSync(sources).filter((name) => name.endsWith(".cpp")).sort().map((name) => join(sources, name))
  );
  return files.flatMap((source) => {
    const stem = basename(source, ".cpp");
    if (!readFileSync(source, "utf8").includes(VARIANT_MARK)) {
      return [{ object: join(folder, `${stem}.o`), args: [...common, "-c", source] }];
    }
    return Object.entries(variants).map(([isa, flags]) => ({
      object: join(folder, `${stem}.${isa}.o`),
      args: [...common, `-DHC_ISA=${isa}`, ...flags, "-c", source],
    }));
  });
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

/** Writes the instruction table's C++ side where sources include it, when it changed. */
function generate(): void {
  const header = join(GENERATED, "instructions.h");
  if (existsSync(header) && readFileSync(header, "utf8") === cppHeader()) return;
  const temporary = `${header}.${process.pid}.tmp`;
  writeFileSync(temporary, cppHeader());
  renameSync(temporary, header);
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

export interface BuildOptions {
  readonly sanitize?: Sanitizer | undefined;
  /** Folders of the .cpp files. Default: ffi/simd and ffi/cuda. */
  readonly sources?: readonly string[];
  /** The file to make, beside its objects. Default: where `open` looks. */
  readonly library?: string;
  /** For the compiler, after all others. */
  readonly flags?: readonly string[];
}

/** Builds what is out of date. Throws HcinferError when there is no compiler or a source does not compile. */
export async function build(options: BuildOptions = {}): Promise<void> {
  const { sanitize, sources = SOURCES, library = libraryPath(sanitize), flags = [] } = options;
  const folder = dirname(library);
  mkdirSync(folder, { recursive: true });
  generate();
  // Instrumented code at -O3 takes minutes to compile.
  const instrumented = sanitize ? [`-fsanitize=${sanitize}`, "-O1", "-g1", "-fno-omit-frame-pointer"] : [];
  const extra = [...instrumented, ...flags];
  const { compiler, version } = await findCompiler();
  const hashOf = (args: readonly string[]) =>
    createHash("sha256").update(JSON.stringify([compiler, version, args])).digest("hex");

  const units = compilations(sources, folder, extra);
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

  // A function that is declared but nowhere defined fails here, not when the library is opened. (Sanitizers leave their
  // runtime to the program.)
  const complete = platform() === "linux" && !sanitize ? ["-Wl,--no-undefined"] : [];
  const linkArgs = ["-shared", "-pthread", ...extra, ...complete, ...units.map((unit) => unit.object)];
  const linkHash = hashOf(linkArgs);
  const record = `${library}.hash`;
  const linked = existsSync(library) && existsSync(record) && readFileSync(record, "utf8") === linkHash &&
    units.every((unit) => modified(unit.object) <= modified(library));
  if (!linked) {
    show(`linking ${basename(library)}`);
    const temporary = `${library}.${process.pid}.tmp`;
    await invoke(compiler, [...linkArgs, "-o", temporary]);
    writeFileSync(record, linkHash);
    renameSync(temporary, library);
    show(`built ${relative(process.cwd(), library)} with ${compiler}`, true);
  }
}

/** One line on a terminal, rewritten; lines elsewhere. */
function progress(): (text: string, last?: boolean) => void {
  const terminal = process.stderr.isTTY;
  return (text, last = false) =>
    process.stderr.write(terminal ? `\r\x1b[K${text}${last ? "\n" : ""}` : `${text}\n`);
}

function sanitizerOf(args: readonly string[]): Sanitizer | undefined {
  if (args.length === 0) return undefined;
  const chosen = SANITIZERS.find((name) => name === args[1]);
  if (args[0] !== "--sanitize" || args.length !== 2 || !chosen) {
    throw new HcinferError("usage", `expected --sanitize ${SANITIZERS.join("|")}, got: ${args.join(" ")}`);
  }
  return chosen;
}

if (import.meta.main) {
  try {
    await build({ sanitize: sanitizerOf(process.argv.slice(2)) });
  } catch (error) {
    if (!(error instanceof HcinferError)) throw error;
    console.error(`\nerror: ${error.message}`);
    process.exit(error.exitCode);
  }
}
