/**
 * llama.cpp as the peer: prebuilt binaries from npm (node-llama-cpp and its package for this platform), installed once
 * into the cache folder, run by Node in a process of its own (llama_child.mjs).
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { arch, platform } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { cacheFolder } from "./shape.ts";

export const LLAMA_VERSION = "3.22.1";

const Answer = z.union([
  z.object({ error: z.string() }),
  z.object({
    threads: z.number(),
    /** Tokens per second: llama.cpp's own timings, and by the wall clock around the wrapper. */
    prefill: z.number(),
    decode: z.number(),
    wallPrefill: z.number(),
    wallDecode: z.number(),
    residentBytes: z.number(),
  }),
]);

export interface LlamaSpeed {
  readonly prefill: number;
  readonly decode: number;
  readonly wallPrefill: number;
  readonly wallDecode: number;
  readonly residentBytes: number;
}

function install(): string {
  const folder = join(cacheFolder(), `node-llama-cpp-${LLAMA_VERSION}`);
  const binaries = `@node-llama-cpp/${
    { darwin: "mac", win32: "win" }[platform() as string] ?? platform()
  }-${arch()}`;
  if (!existsSync(join(folder, "node_modules", binaries))) {
    process.stderr.write(`installing node-llama-cpp ${LLAMA_VERSION} into ${folder}\n`);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true, type: "module" }));
    // Optional packages hold the binaries of every other platform and of CUDA: only this platform's is asked for.
    const packages = [`node-llama-cpp@${LLAMA_VERSION}`, `${binaries}@${LLAMA_VERSION}`];
    execFileSync("npm", ["install", "--ignore-scripts", "--omit=optional", "--no-audit", ...packages], {
      cwd: folder,
      stdio: ["ignore", "ignore", "inherit"],
    });
  }
  copyFileSync(fileURLToPath(new URL("./llama_child.mjs", import.meta.url)), join(folder, "llama_child.mjs"));
  return folder;
}

export class Llama implements Disposable {
  readonly #child: ChildProcess;
  readonly #answers: AsyncIterator<string>;

  constructor(readonly model: string) {
    this.#child = spawn("node", ["llama_child.mjs"], { cwd: install(), stdio: ["pipe", "pipe", "ignore"] });
    this.#answers = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  /** Speed of a prompt of `prompt` tokens as one batch, then of decoding `tokens` after it. */
  async measure(prompt: number, tokens: number, threads: number): Promise<LlamaSpeed> {
    this.#child.stdin!.write(`${JSON.stringify({ model: this.model, prompt, tokens, threads })}\n`);
    const { value, done } = await this.#answers.next();
    if (done) throw new Error("llama.cpp's process ended");
    const answer = Answer.parse(JSON.parse(value));
    if ("error" in answer) throw new Error(`llama.cpp: ${answer.error}`);
    return answer;
  }

  [Symbol.dispose](): void {
    this.#child.stdin!.end();
    this.#child.kill();
  }
}
