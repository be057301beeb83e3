/**
 * Which executor runs a bundle: the GPU's where one is there and the plan has work for it, the CPU's otherwise. A device that was
 * asked for by name is never replaced by another.
 */
import { HcinferError } from "../compiler/errors.ts";
import { devices } from "../ffi/cuda/context.ts";
import { Driver } from "../ffi/cuda/driver.ts";
import type { Executor, ExecutorOptions } from "./executor.ts";
import { createCpuExecutor, type MappedBundle } from "./executors/cpu/executor.ts";

export const DEVICE_CHOICES = ["auto", "cpu", "cuda"] as const;
export type DeviceChoice = typeof DEVICE_CHOICES[number];

export interface DeviceOptions extends ExecutorOptions {
  /** "auto": as planned, and the CPU alone where there is no GPU. */
  readonly device: DeviceChoice;
  /** Most bytes of the GPU's memory to take; default: what is free. */
  readonly gpuMemory?: number;
  /** Told why, in one line, when the plan has work for a GPU and the CPU does it. */
  readonly onFallback?: (why: string) => void;
}

/** Why no GPU can be used here, in one line; undefined where one can. */
export function gpuProblem(): string | undefined {
  try {
    devices(Driver.open());
    return undefined;
  } catch (error) {
    if (!(error instanceof HcinferError && error.kind === "environment")) throw error;
    // Every name that the driver's library might have failed for the same reason.
    return error.message.split("; ")[0]!.replaceAll("\n", ", ");
  }
}

/** @throws {HcinferError} "environment" when `device` is "cuda" and no GPU can be used */
export function requireDevice(device: DeviceChoice): void {
  const problem = device === "cuda" ? gpuProblem() : undefined;
  if (problem !== undefined) throw new HcinferError("environment", `${problem}; use --device cpu`);
}

/**
 * @throws {HcinferError} "environment" when `device` is "cuda" and there is no GPU to use, "usage" for options that contradict
 *   each other, and what the executor's own constructor throws
 */
export function openExecutor(bundle: MappedBundle, options: DeviceOptions): Executor {
  const { device, gpuMemory, onFallback, ...rest } = options;
  if (device === "cpu" && gpuMemory !== undefined) {
    throw new HcinferError(
      "usage",
      "a limit of the GPU's memory was given for the CPU: leave one of both out",
    );
  }
  requireDevice(device);
  const isPlanned = bundle.plan.graph.nodes.some((node) => node.placement.device === "gpu");
  if (device === "auto" && isPlanned) onFallback?.(`${gpuProblem()}; running on the CPU`);
  return createCpuExecutor(bundle, rest);
}
