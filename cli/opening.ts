/** Opens what a command runs: the bundle, an executor on it, and its tokenizer where text is needed. */
import { type Bundle, openBundle } from "../compiler/bundle.ts";
import { limitsOf } from "../compiler/memory.ts";
import type { Executor } from "../runtime/executor.ts";
import { createCpuExecutor } from "../runtime/executors/cpu/executor.ts";
import { Tokenizer } from "../runtime/tokenizer.ts";
import type { RunOptions } from "./arguments.ts";

export interface OpenOptions extends RunOptions {
  /** What the command needs; more than the limit is cut to it. Default: the limit. */
  readonly contextLength?: number;
  readonly capacity?: number;
  readonly cachePositions?: number;
}

/** A bundle with an executor on it; dispose of it when done. */
export class OpenModel implements Disposable {
  private constructor(readonly bundle: Bundle, readonly executor: Executor) {}

  static open(path: string, options: OpenOptions): OpenModel {
    const bundle = openBundle(path);
    try {
      const asked = options.context === undefined ? {} : { contextLength: options.context };
      const { contextLength: limit } = limitsOf(bundle.plan.model, asked);
      const contextLength = Math.min(options.contextLength ?? limit, limit);
      return new OpenModel(bundle, createCpuExecutor(bundle, { ...options, contextLength }));
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
