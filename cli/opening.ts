/** Opens what a command runs: the bundle, an executor on it, and its tokenizer where text is needed. */
import { type Bundle, openBundle } from "../compiler/bundle.ts";
import { HcinferError } from "../compiler/errors.ts";
import type { ModelInfo } from "../compiler/plan.ts";
import type { Executor } from "../runtime/executor.ts";
import { createCpuExecutor } from "../runtime/executors/cpu.ts";
import { folderFiles, type TextFiles } from "../runtime/text_files.ts";
import { Tokenizer } from "../runtime/tokenizer.ts";
import type { RunOptions } from "./arguments.ts";

export interface OpenOptions extends RunOptions {
  /** What the command needs; more than the limit is cut to it. Default: the limit. */
  readonly contextLength?: number;
  /** Tokens in one step; more than the context is cut to it. */
  readonly capacity?: number;
}

/** Where a bundle's tokenizer and chat template come from. */
export function textFiles(bundle: Bundle): TextFiles {
  return folderFiles(bundle.path);
}

/** Most tokens of a sequence: the model's context, or less where `asked`. */
export function contextLimit(model: ModelInfo, asked = model.contextLength): number {
  if (asked <= model.contextLength) return asked;
  throw new HcinferError(
    "usage",
    `--context ${asked} is more than the ${model.contextLength} tokens that ${model.name} was made for`,
  );
}

/** A bundle with an executor on it; dispose of it when done. */
export class OpenModel implements Disposable {
  private constructor(readonly bundle: Bundle, readonly executor: Executor) {}

  static open(path: string, options: OpenOptions): OpenModel {
    const bundle = openBundle(path);
    try {
      const limit = contextLimit(bundle.plan.model, options.context);
      const contextLength = Math.min(options.contextLength ?? limit, limit);
      const { threads, corrections, capacity } = options;
      const executor = createCpuExecutor(bundle, {
        threads,
        corrections,
        contextLength,
        ...(capacity === undefined ? {} : { capacity: Math.min(capacity, contextLength) }),
      });
      return new OpenModel(bundle, executor);
    } catch (error) {
      bundle.close();
      throw error;
    }
  }

  tokenizer(): Tokenizer {
    return Tokenizer.open(textFiles(this.bundle), this.executor.model.vocabularySize);
  }

  [Symbol.dispose](): void {
    this.executor[Symbol.dispose]();
    this.bundle.close();
  }
}
