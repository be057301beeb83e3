/** Opens what a command runs: the bundle, an executor on it, and its tokenizer where text is needed. */
import process from "node:process";
import { type Bundle, openBundle } from "../compiler/bundle.ts";
import { limitsOf } from "../compiler/memory.ts";
import { type DeviceExecutor, openExecutor, requireDevice } from "../runtime/devices.ts";
import { Tokenizer } from "../runtime/tokenizer.ts";
import type { RunOptions } from "./arguments.ts";
import { poorAlone } from "./summary.ts";

export interface OpenOptions extends RunOptions {
  /** What the command needs; more than the limit is cut to it. Default: the limit. */
  readonly contextLength?: number;
  readonly capacity?: number;
  readonly cachePositions?: number;
  /** `cachePositions` by the context's length, once that is settled. */
  readonly roomFor?: (contextLength: number) => number;
}

/**
 * An executor on the device that was asked for. Standard error says where a planned GPU is not there, and where a backbone
 * runs alone that is poor alone.
 */
export function openExecutorOn(bundle: Bundle, options: OpenOptions): DeviceExecutor {
  const poor = options.corrections === "off" ? poorAlone(bundle.report) : undefined;
  if (poor !== undefined) process.stderr.write(`${poor}\n`);
  return openExecutor(bundle, { ...options, onFallback: (why) => process.stderr.write(`${why}\n`) });
}

/** A bundle with an executor on it; dispose of it when done. */
export class OpenModel implements Disposable {
  private constructor(readonly bundle: Bundle, readonly executor: DeviceExecutor) {}

  static open(path: string, options: OpenOptions): OpenModel {
    // Before all weights are read.
    requireDevice(options.device);
    const bundle = openBundle(path);
    try {
      const { context, contextLength: needed, roomFor, ...rest } = options;
      const asked = context === undefined ? {} : { contextLength: context };
      const { contextLength: limit } = limitsOf(bundle.plan.model, asked);
      // Where nothing is asked for, the executor's own default holds, which is less on a GPU.
      const limited = needed === undefined ? asked : { contextLength: Math.min(needed, limit) };
      const cache = roomFor && { cachePositions: roomFor(limited.contextLength ?? limit) };
      return new OpenModel(bundle, openExecutorOn(bundle, { ...rest, ...limited, ...cache }));
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
