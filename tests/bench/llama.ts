/** llama.cpp as the peer: node-llama-cpp's prebuilt binaries, run by Node in a process of its own (llama_child.mjs). */
import { type ChildProcess, spawn } from "node:child_process";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { installLlama } from "../../examples/study/llama_install.ts";

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

/** Node finds node-llama-cpp from where the child's file lies. */
function placeChild(): string {
  const folder = installLlama();
  copyFileSync(fileURLToPath(new URL("./llama_child.mjs", import.meta.url)), join(folder, "llama_child.mjs"));
  return folder;
}

export class Llama implements Disposable {
  readonly #child: ChildProcess;
  readonly #answers: AsyncIterator<string>;

  constructor(readonly model: string) {
    this.#child = spawn("node", ["llama_child.mjs"], {
      cwd: placeChild(),
      stdio: ["pipe", "pipe", "ignore"],
    });
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
