/**
 * Compiles the native library: ffi/simd/*.cpp and ffi/cuda/*.cpp into ffi/build/libhcinfer.so (.dylib on macOS). Run by
 * `deno task build`; prints only when there is something to do.
 *
 *   deno task build [--sanitize address|thread|undefined|address,undefined]
 *
 * Kernels (sources in namespace hc::HC_ISA) are compiled once per instruction set of this processor family and chosen
 * at run time; everything else once, for the family's baseline (build_library.ts).
 */
import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { arch, platform } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { HcinferError } from "../compiler/errors.ts";
import { buildLibrary, type Compilation, writeChanged } from "./build_library.ts";
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

// Instrumented code at -O3 takes minutes to compile, and at -O1 still does with every address checked in place, not in a function
// of the runtime (clang, which has no such parameter, would warn).
const INSTRUMENTED = [
  "-O1",
  "-g1",
  "-fno-omit-frame-pointer",
  "--param=asan-instrumentation-with-call-threshold=0",
  "-Wno-unused-command-line-argument",
];
// Half of what is left. Where a wrong pointer is followed, the address sanitizer finds it as well.
const FOUND_BY_ADDRESS = "-fno-sanitize=null,object-size,pointer-overflow";
// Vectors may lie anywhere; what else a kernel reads is the same in its scalar variant.
const FOUND_IN_SCALAR = "-fno-sanitize=alignment";

function instrumentation(sanitize: Sanitizer | undefined): string[] {
  if (!sanitize) return [];
  return [
    `-fsanitize=${sanitize}`,
    ...INSTRUMENTED,
    ...(sanitize.includes("address") ? [FOUND_BY_ADDRESS] : []),
  ];
}

function compilations(
  sources: readonly string[],
  folder: string,
  extra: readonly string[],
  root: string,
  sanitize: Sanitizer | undefined,
): Compilation[] {
  const variants = VARIANTS[arch()] ?? { scalar: [] };
  const common = [...FLAGS.split(" "), `-I${relative(root, GENERATED)}`, ...extra];
  const files = sources.flatMap((sources) =>
    readdirSync(sources).filter((name) => name.endsWith(".cpp")).sort().map((name) => join(sources, name))
  );
  return files.flatMap((source) => {
    const stem = basename(source, ".cpp");
    if (!readFileSync(source, "utf8").includes(VARIANT_MARK)) {
      return [{ object: join(folder, `${stem}.o`), args: [...common, "-c", relative(root, source)] }];
    }
    return Object.entries(variants).map(([isa, machine]) => {
      const flags = sanitize && isa !== "scalar" ? [...machine, FOUND_IN_SCALAR] : machine;
      const args = [...common, `-DHC_ISA=${isa}`, ...flags, "-c", relative(root, source)];
      return { object: join(folder, `${stem}.${isa}.o`), args };
    });
  });
}

export interface BuildOptions {
  readonly sanitize?: Sanitizer | undefined;
  /** Folders of the .cpp files. Default: ffi/simd and ffi/cuda. */
  readonly sources?: readonly string[];
  /** The folder that the compiler names files from. Default: ffi. */
  readonly root?: string;
  /** The file to make, beside its objects. Default: where `open` looks. */
  readonly library?: string;
  /** For the compiler, after all others. */
  readonly flags?: readonly string[];
}

/** Builds what is out of date. Throws HcinferError when there is no compiler or a source does not compile. */
export async function build(options: BuildOptions = {}): Promise<void> {
  const { sanitize, sources = SOURCES, root = FFI, library = libraryPath(sanitize), flags = [] } = options;
  const folder = dirname(library);
  mkdirSync(folder, { recursive: true });
  writeChanged(join(GENERATED, "instructions.h"), cppHeader());
  const extra = [...instrumentation(sanitize), ...flags];
  await buildLibrary({
    path: library,
    root,
    units: compilations(sources, folder, extra, root, sanitize),
    link: extra,
    partial: sanitize !== undefined,
  });
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
