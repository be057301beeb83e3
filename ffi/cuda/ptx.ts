/**
 * Compiles the kernels to PTX, which is checked in: ffi/cuda/ptx/<75|80>/<source>.ptx, text that NVIDIA's driver compiles
 * for the GPU at hand when it loads it; of sources that are the same for both, only that of 75. Only who changes a kernel needs
 * nvcc.
 *
 *   deno task ptx            compiles what is out of date
 *   deno task ptx --check    compares the hashes of the sources, and the text where the same nvcc is installed
 *   deno task ptx --report   registers, spills, shared memory and occupancy of every kernel
 *
 * ptx/sources.json has the SHA-256 of each source with all that it includes, and nvcc's version. nvcc writes PTX of its own
 * version, which older drivers refuse; the kernels need no more than PTX 8.0 (CUDA 12.0), so that is what the files say, and
 * ptxas is asked whether it is true.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { HcinferError } from "../../compiler/errors.ts";
import { writeChanged } from "../build_library.ts";
import { GENERATED, KERNELS } from "./build.ts";
import { parametersHeader } from "./parameters.ts";

const run = promisify(execFile);
export const PTX = join(dirname(fileURLToPath(import.meta.url)), "ptx");
const RECORD = join(PTX, "sources.json");

/** Compute capabilities that PTX is written for: plain code, and tensor cores for bytes. */
export const ARCHITECTURES = [75, 80] as const;
const PTX_VERSION = "8.0";
// -fmad=false: a fused multiply-add is used only where one is written, as in the CPU's kernels, so that kernels that must
// agree bit for bit do.
const FLAGS = ["-std=c++20", "-O3", "-fmad=false"];

interface Sources {
  /** As nvcc says, `13.0.88`. */
  readonly nvcc: string;
  readonly sha256: Readonly<Record<string, string>>;
}

/** Names of the sources in kernels/, without their ending. */
export function sourceNames(): string[] {
  return readdirSync(KERNELS).filter((name) => name.endsWith(".cu")).sort().map((name) =>
    name.slice(0, -".cu".length)
  );
}

/** The texts of a source and of all that it includes, by name. `read` gives a file's text. */
function closure(source: string, read: (name: string) => string): ReadonlyMap<string, string> {
  const texts = new Map<string, string>();
  const add = (name: string) => {
    if (texts.has(name)) return;
    const text = read(name);
    texts.set(name, text);
    for (const match of text.matchAll(/^\s*#\s*include\s+"([^"]+)"/gm)) {
      // What the simulator has instead of CUDA's own headers, nvcc does not see.
      if (!match[1]!.startsWith("../sim/")) add(match[1]!);
    }
  };
  add(source);
  return texts;
}

/** SHA-256 of a source, the headers it includes, theirs, and how it is compiled. `read` gives a file's text by its name. */
export function sourceHash(source: string, read: (name: string) => string): string {
  const hash = createHash("sha256").update(JSON.stringify([FLAGS, PTX_VERSION]));
  for (const entry of closure(source, read)) hash.update(JSON.stringify(entry));
  return hash.digest("hex");
}

/** What a source is compiled for: where nothing in it asks what it is compiled for, the least. */
function architecturesOf(name: string): readonly number[] {
  const texts = [...closure(`${name}.cu`, readSource).values()];
  return texts.some((text) => text.includes("__CUDA_ARCH__")) ? ARCHITECTURES : ARCHITECTURES.slice(0, 1);
}

function readSource(name: string): string {
  return name === "parameters.h" ? parametersHeader() : readFileSync(join(KERNELS, name), "utf8");
}

/** Hashes of all sources as they are. */
export function currentHashes(): Record<string, string> {
  return Object.fromEntries(sourceNames().map((name) => [name, sourceHash(`${name}.cu`, readSource)]));
}

export function recorded(): Sources {
  return existsSync(RECORD) ? JSON.parse(readFileSync(RECORD, "utf8")) : { nvcc: "", sha256: {} };
}

/** Sources whose PTX is not of them, or is not there. */
export function outOfDate(): string[] {
  const { sha256 } = recorded(), current = currentHashes();
  const names = new Set([...Object.keys(sha256), ...Object.keys(current)]);
  return [...names].filter((name) =>
    sha256[name] !== current[name] || !architecturesOf(name).every((arch) => existsSync(ptxPath(arch, name)))
  ).sort();
}

export const ptxPath = (architecture: number, name: string): string =>
  join(PTX, String(architecture), `${name}.ptx`);

/** nvcc's text without comments, without what depends on where it was compiled, and as PTX of an older version. */
export function normalise(ptx: string): string {
  // Names of what is local to a source have hashes of its path, before and, where no kernel's name stands there, behind its name.
  const local = /_(?:INTERNAL_|GLOBAL__N__)([0-9a-f]{8})_\d+_\w+?_cu_([0-9a-f]{8})?/g;
  const hashes = new Set([...ptx.matchAll(local)].flatMap(([, before, behind]) => [before, behind]));
  hashes.delete(undefined);
  const lines = ptx.split("\n").map((line) => line.replace(/\s*\/\/.*$/, "").trim())
    // A hint about loads of which not all bytes are used; PTX 8.3.
    .filter((line) => line !== "" && !line.startsWith('.pragma "used_bytes_mask'))
    .map((line) => line.replace(/^\.version .*/, `.version ${PTX_VERSION}`));
  return [...hashes].reduce<string>(
    (text, hash) => text.replaceAll(`_${hash}`, "_00000000"),
    lines.join("\n") + "\n",
  );
}

/** Runs nvcc. Throws HcinferError with what it says where it fails. */
export async function nvcc(
  args: readonly string[],
): Promise<{ readonly stdout: string; readonly stderr: string }> {
  try {
    return await run("nvcc", [...args], { maxBuffer: 1 << 28 });
  } catch (error) {
    const { stderr, code, message } = error as { stderr?: string; code?: unknown; message: string };
    const reason = code === "ENOENT" ? "nvcc is not installed (CUDA toolkit 13)" : stderr || message;
    throw new HcinferError("environment", `nvcc ${args.join(" ")}\n${reason}`);
  }
}

/** As `13.0.88`; undefined where there is no nvcc. */
export async function nvccVersion(): Promise<string | undefined> {
  try {
    return /\bV(\d+\.\d+\.\d+)/.exec((await nvcc(["--version"])).stdout)?.[1];
  } catch {
    return undefined;
  }
}

async function compile(architecture: number, name: string): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-ptx-"));
  try {
    const output = join(folder, `${name}.ptx`);
    const includes = [`-I${KERNELS}`, `-I${GENERATED}`];
    await nvcc([
      ...FLAGS,
      ...includes,
      "-ptx",
      `-arch=compute_${architecture}`,
      "-o",
      output,
      join(KERNELS, `${name}.cu`),
    ]);
    const text = normalise(readFileSync(output, "utf8"));
    writeFileSync(output, text);
    await nvcc(["-cubin", `-arch=sm_${architecture}`, "-o", join(folder, "checked"), output]);
    return text;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** `work` of every item, as many at a time as there are cores. */
export async function parallel<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const left = [...items];
  const worker = async () => {
    for (let item = left.shift(); item !== undefined; item = left.shift()) await work(item);
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
}

const units = (names: readonly string[]) =>
  names.flatMap((name) => architecturesOf(name).map((arch) => ({ name, arch })));

/** The file that a device of a compute capability takes. */
export function ptxOf(capability: number, name: string): string {
  const paths = ARCHITECTURES.filter((least) => least <= capability).map((least) => ptxPath(least, name));
  return paths.findLast(existsSync) ?? paths[0]!;
}

/** Compiles what is out of date, or all if nvcc is of another version than it was. */
async function update(): Promise<void> {
  const version = await nvccVersion();
  if (version === undefined) throw new HcinferError("environment", "nvcc is not installed (CUDA toolkit 13)");
  writeChanged(join(GENERATED, "parameters.h"), parametersHeader());
  const current = currentHashes();
  const names = version === recorded().nvcc ? outOfDate() : Object.keys(current);
  await parallel(units(names.filter((name) => name in current)), async ({ name, arch }) => {
    mkdirSync(join(PTX, String(arch)), { recursive: true });
    writeFileSync(ptxPath(arch, name), await compile(arch, name));
    console.error(`${arch}/${name}.ptx`);
  });
  for (const arch of ARCHITECTURES) {
    for (const name of names.filter((name) => !(name in current))) {
      rmSync(ptxPath(arch, name), { force: true });
    }
  }
  const sources: Sources = { nvcc: version, sha256: current };
  writeChanged(RECORD, `${JSON.stringify(sources, null, 2)}\n`);
}

/** Throws HcinferError where the PTX is not that of the sources. */
async function check(): Promise<void> {
  const old = outOfDate();
  if (old.length > 0) {
    throw new HcinferError("environment", `the PTX of ${old.join(", ")} is out of date\nrun: deno task ptx`);
  }
  const version = await nvccVersion();
  if (version !== recorded().nvcc) {
    console.error(
      `hashes agree; text not compared: it is of nvcc ${recorded().nvcc}, here is ${version ?? "none"}`,
    );
    return;
  }
  writeChanged(join(GENERATED, "parameters.h"), parametersHeader());
  const different: string[] = [];
  await parallel(units(sourceNames()), async ({ name, arch }) => {
    if (await compile(arch, name) !== readFileSync(ptxPath(arch, name), "utf8")) {
      different.push(`${arch}/${name}.ptx`);
    }
  });
  if (different.length > 0) {
    throw new HcinferError(
      "environment",
      `${different.sort().join(", ")}: not what nvcc ${version} makes of the sources\nrun: deno task ptx`,
    );
  }
}

async function main(args: readonly string[]): Promise<void> {
  const [option] = args;
  if (args.length > 1 || (option !== undefined && option !== "--check" && option !== "--report")) {
    throw new HcinferError("usage", `expected --check, --report or nothing, got: ${args.join(" ")}`);
  }
  if (option === "--check") await check();
  else if (option === "--report") console.log(await (await import("./ptx_report.ts")).report());
  else await update();
}

// Not awaited: the report imports this module, which would wait for it.
if (import.meta.main) {
  main(process.argv.slice(2)).catch((error) => {
    if (!(error instanceof HcinferError)) throw error;
    console.error(`error: ${error.message}`);
    process.exit(error.exitCode);
  });
}
