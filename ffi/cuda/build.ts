/**
 * Compiles what stands in for a GPU: the simulator (ffi/cuda/sim/*.cpp) into ffi/build/cuda/libcuda_sim.so, and the kernels
 * (ffi/cuda/kernels/*.cu) for the host into ffi/build/cuda/libkernels.so. Writes ffi/build/cuda/parameters.h first, which the
 * kernels include however they are compiled.
 *
 *   deno task build:cuda [--sanitize address]
 *
 * Only Linux, on x86-64 or 64-bit ARM: elsewhere it says so and builds nothing. The PTX for GPUs is ptx.ts's.
 */
import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { arch, platform } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { HcinferError } from "../../compiler/errors.ts";
import { buildLibrary, writeChanged } from "../build_library.ts";
import { parametersHeader } from "./parameters.ts";

const CUDA = dirname(fileURLToPath(import.meta.url));
const SIMULATOR = join(CUDA, "sim");
export const KERNELS = join(CUDA, "kernels");
/** Where the generated headers lie, for every build. */
export const GENERATED = join(CUDA, "../build/cuda");

type Sanitizer = "address";

/** The folder of the libraries; `sanitize` names a build of its own. */
export function outputFolder(sanitize?: Sanitizer): string {
  return sanitize ? join(GENERATED, `sanitize-${sanitize}`) : GENERATED;
}

/** Whether the simulator can run here. */
export const simulatorSupported = (): boolean =>
  platform() === "linux" && (arch() === "x64" || arch() === "arm64");

// Conversions of half precision are instructions of F16C; kernels' loops are vectorised for speed of the tests only.
const MACHINE = arch() === "x64" ? ["-mavx2", "-mfma", "-mf16c"] : [];
const FLAGS = "-std=c++20 -O2 -g1 -Wall -Wextra -Werror -fPIC -pthread -ffp-contract=off -fvisibility=hidden"
  .split(" ");
// -fno-extern-tls-init: shared memory is thread-local and has no initialiser to look for. -fno-gnu-unique: a kernels'
// library can be unloaded. Sources may have pragmas for nvcc. Undefined operations trap; the simulator makes them the
// launch's error.
const KERNEL_FLAGS = "-fno-extern-tls-init -fno-gnu-unique -Wno-unknown-pragmas".split(" ");
const TRAPS = "-fsanitize=bounds,alignment,shift -fsanitize-undefined-trap-on-error".split(" ");

/** Names of the kernels in a source, in order. Throws HcinferError where one is not of the plain form. */
export function kernelNames(source: string, text: string): string[] {
  const code = text.replaceAll(/\/\*[\s\S]*?\*\/|\/\/.*/g, "");
  const bounds = String.raw`(?:__launch_bounds__\s*\([^)]*\)\s*)?`;
  const plain = new RegExp(
    String.raw`extern\s+"C"\s+__global__\s+${bounds}void\s+${bounds}(\w+)\s*\(`,
    "g",
  );
  const names = [...code.matchAll(plain)].map((match) => match[1]!);
  const found = [...code.matchAll(/\b__global__\b/g)].length;
  if (names.length !== found) {
    throw new HcinferError(
      "environment",
      `${source} has ${found} kernels, ${names.length} of the form: extern "C" __global__ void name(`,
    );
  }
  return names;
}

/** A source with the table of its kernels behind it, for a file in `folder`. `identifier` names the table. */
function withTable(path: string, identifier: string, folder: string): string {
  const names = kernelNames(basename(path), readFileSync(path, "utf8"));
  return [
    "// Written by ffi/cuda/build.ts. Do not edit.",
    `#include "${relative(folder, path)}"`,
    `static const SimKernel kernels[] = {`,
    ...names.map((name) => `    SimLauncher<${name}>::entry("${name}"),`),
    "    {}};",
    `extern const SimSource sim_${identifier};`,
    `const SimSource sim_${identifier} = {kernels, ${names.length}};`,
    "",
  ].join("\n");
}

/** All sources' tables, and the dynamic shared memory that the sources declare as `extern __shared__ float4 hc_shared[]`. */
function moduleSource(identifiers: readonly string[], folder: string): string {
  return [
    "// Written by ffi/cuda/build.ts. Do not edit.",
    `#include "${relative(folder, join(SIMULATOR, "cuda_sim.h"))}"`,
    "alignas(128) thread_local float4 hc_shared[(sim_max_dynamic_shared + sim_shared_tail) / sizeof(float4)];",
    ...identifiers.map((name) => `extern const SimSource sim_${name};`),
    `static const SimSource sources[] = {${identifiers.map((name) => `sim_${name}, `).join("")}{}};`,
    'extern "C" __attribute__((visibility("default"))) const SimModule sim_module = {',
    `    sources, ${identifiers.length}, [] { return static_cast<void*>(hc_shared); }, sizeof hc_shared};`,
    "",
  ].join("\n");
}

export interface CudaBuildOptions {
  readonly sanitize?: Sanitizer | undefined;
  /** Folder of the .cu files. Default: ffi/cuda/kernels. */
  readonly kernels?: string;
  /** The kernels' library. Default: libkernels.so beside the simulator. */
  readonly library?: string;
}

/** Builds what is out of date. Throws HcinferError when there is no compiler or a source does not compile. */
export async function buildCuda(options: CudaBuildOptions = {}): Promise<void> {
  const { sanitize, kernels = KERNELS } = options;
  const output = outputFolder(sanitize);
  const { library = join(output, "libkernels.so") } = options;
  writeChanged(join(GENERATED, "parameters.h"), parametersHeader());
  const instrumented = sanitize ? [`-fsanitize=${sanitize}`, "-fno-omit-frame-pointer"] : [];
  const flags = [...FLAGS, ...MACHINE, ...instrumented];

  const simulator = join(output, "libcuda_sim.so");
  const simulatorObjects = join(output, "sim");
  mkdirSync(simulatorObjects, { recursive: true });
  const sources = readdirSync(SIMULATOR).filter((name) => name.endsWith(".cpp")).sort();
  await buildLibrary({
    path: simulator,
    root: CUDA,
    units: sources.map((name) => ({
      object: join(simulatorObjects, `${name.slice(0, -".cpp".length)}.o`),
      args: [...flags, "-c", relative(CUDA, join(SIMULATOR, name))],
    })),
    link: [...instrumented, "-Wl,-soname,libcuda_sim.so"],
    libraries: ["-ldl"],
    partial: sanitize !== undefined,
  });

  const folder = dirname(library), stem = basename(library, ".so");
  const objects = join(folder, stem);
  mkdirSync(objects, { recursive: true });
  const stems = readdirSync(kernels).filter((name) => name.endsWith(".cu")).sort()
    .map((name) => name.slice(0, -".cu".length));
  for (const name of stems) {
    writeChanged(join(objects, `${name}.cpp`), withTable(join(kernels, `${name}.cu`), name, objects));
  }
  writeChanged(join(objects, "sim_module.cpp"), moduleSource(stems, objects));
  // An array that is not bounded has no -fsanitize=bounds; the address sanitizer sees more, and reports instead of trapping.
  const checks = sanitize ? [] : TRAPS;
  await buildLibrary({
    path: library,
    root: CUDA,
    units: [...stems, "sim_module"].map((name) => ({
      object: join(objects, `${name}.o`),
      args: [
        ...flags,
        ...KERNEL_FLAGS,
        ...checks,
        `-I${relative(CUDA, GENERATED)}`,
        `-I${relative(CUDA, KERNELS)}`,
        "-c",
        relative(CUDA, join(objects, `${name}.cpp`)),
      ],
    })),
    link: instrumented,
    libraries: [relative(CUDA, simulator), "-Wl,-rpath,$ORIGIN"],
    partial: sanitize !== undefined,
  });
}

function sanitizerOf(args: readonly string[]): Sanitizer | undefined {
  if (args.length === 0) return undefined;
  if (args.length === 2 && args[0] === "--sanitize" && args[1] === "address") return "address";
  throw new HcinferError("usage", `expected --sanitize address, got: ${args.join(" ")}`);
}

if (import.meta.main) {
  try {
    const sanitize = sanitizerOf(process.argv.slice(2));
    if (simulatorSupported()) await buildCuda({ sanitize });
    else {console.error(
        `the GPU simulator needs Linux on x86-64 or ARM, not ${platform()} on ${arch()}: not built`,
      );}
  } catch (error) {
    if (!(error instanceof HcinferError)) throw error;
    console.error(`\nerror: ${error.message}`);
    process.exit(error.exitCode);
  }
}
