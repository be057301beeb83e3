/** llama.cpp as npm has it: node-llama-cpp and its binaries for this platform, installed once into a cache folder. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { arch, homedir, platform } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { HcinferError } from "../../compiler/errors.ts";

export const LLAMA_VERSION = "3.22.1";

/** Of the packages of binaries, where it is not Node's. */
const PLATFORMS: Readonly<Record<string, string>> = {
  "darwin-arm64": "mac-arm64-metal",
  "darwin-x64": "mac-x64",
  "win32-x64": "win-x64",
  "win32-arm64": "win-arm64",
};

/** Where models, bundles and llama.cpp are kept between runs: $HCINFER_BENCH_CACHE or the user's cache folder. */
export function cacheFolder(): string {
  const base = process.env["HCINFER_BENCH_CACHE"] ?? join(homedir(), ".cache", "hcinfer-bench");
  mkdirSync(base, { recursive: true });
  return base;
}

/** Whether nothing is to be downloaded any more. */
export function isLlamaInstalled(): boolean {
  return existsSync(join(llamaFolder(), "node_modules", binaries()));
}

/**
 * The folder that node-llama-cpp is installed in.
 * @throws {HcinferError} "environment", when it is not yet, and npm cannot
 */
export function installLlama(): string {
  const folder = llamaFolder();
  if (isLlamaInstalled()) return folder;
  process.stderr.write(`installing node-llama-cpp ${LLAMA_VERSION} into ${folder}\n`);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true, type: "module" }));
  // Optional packages hold the binaries of every other platform and of CUDA: only this platform's is asked for.
  const packages = [`node-llama-cpp@${LLAMA_VERSION}`, `${binaries()}@${LLAMA_VERSION}`];
  try {
    execFileSync("npm", ["install", "--ignore-scripts", "--omit=optional", "--no-audit", ...packages], {
      cwd: folder,
      stdio: ["ignore", "ignore", "pipe"],
    });
  } catch (error) {
    const said = error instanceof Error ? error.message : String(error);
    const reason = /^npm error (?!code |errno |syscall )(.+)$/m.exec(said)?.[1] ?? said.split("\n")[0];
    throw new HcinferError(
      "environment",
      `npm cannot install node-llama-cpp ${LLAMA_VERSION}, whose llama.cpp is compared with: ${reason}`,
      { cause: error },
    );
  }
  return folder;
}

/** The path of libllama. Throws as `installLlama`. */
export function llamaLibrary(): string {
  const builds = join(installLlama(), "node_modules", binaries(), "bins");
  for (const build of readdirSync(builds)) {
    const name = readdirSync(join(builds, build)).find((file) => LIBRARY.test(file));
    if (name !== undefined) return join(builds, build, name);
  }
  throw new HcinferError(
    "environment",
    `${builds} has no libllama; expected one in node-llama-cpp ${LLAMA_VERSION}`,
  );
}

/** libllama.v0.5.0.so, libllama.dylib, llama.dll; not libllama-common.so. */
const LIBRARY = /^(lib)?llama(\.v?[\d.]+)?\.(so|dylib|dll)$/;

function llamaFolder(): string {
  return join(cacheFolder(), `node-llama-cpp-${LLAMA_VERSION}`);
}

function binaries(): string {
  const name = `${platform()}-${arch()}`;
  return `@node-llama-cpp/${PLATFORMS[name] ?? name}`;
}
