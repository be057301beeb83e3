/** Opens what a command runs: the bundle, an executor on it, and its tokenizer where text is needed. */
import { type Bundle, openBundle } from "../compiler/bundle.ts";
import type { CorrectionMode, Executor } from "../runtime/executor.ts";
import { createCpuExecutor } from "../runtime/executors/cpu/executor.ts";
import { Tokenizer } from "../runtime/tokenizer.ts";

export interface OpenOptions {
  readonly threads: number;
  readonly corrections: CorrectionMode;
  readonly contextLength?: number;
  readonly capacity?: number;
}

/** A bundle with an executor on it; dispose of it when done. */
export class OpenModel implements Disposable {
  private constructor(readonly bundle: Bundle, readonly executor: Executor) {}

  static open(path: string, options: OpenOptions): OpenModel {
    const bundle = openBundle(path);
    try {
      return new OpenModel(bundle, createCpuExecutor(bundle, options));
    } catch (error) {
      bundle.close();
      throw error;
    }
  }

  tokenizer(): Tokenizer {
    return Tokenizer.open(this.bundle, this.executor.model.vocabularySize);
  }

  [Symbol.dispose](): void {
    this.executor[Symbol.dispose]();
    this.bundle.close();
  }
}
