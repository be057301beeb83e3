/**
 * Which executor runs a bundle: the GPU's where one is there and the plan has work for it, the CPU's otherwise. A device that was
 * asked for by name is never replaced by another. A plan that was made for another machine is placed anew.
 */
import { HcinferError } from "../compiler/errors.ts";
import { usesGpu } from "../compiler/ir/graph.ts";
import type { Plan } from "../compiler/plan.ts";
import { genericProfile, type MachineProfile, profileOf } from "../compiler/profile.ts";
import { replan } from "../compiler/replan.ts";
import { Context } from "../ffi/cuda/context.ts";
import { Driver } from "../ffi/cuda/driver.ts";
import type { Executor, ExecutorOptions } from "./executor.ts";
import { createCpuExecutor, type MappedBundle } from "./executors/cpu/executor.ts";
import { createCudaExecutor } from "./executors/cuda/executor.ts";
import { describeGpu } from "./gpu_machine.ts";
import { gpuProblem } from "./gpu_problem.ts";

export const DEVICE_CHOICES = ["auto", "cpu", "cuda"] as const;
/** Where the backbone runs, as it is asked for. */
export type DeviceChoice = typeof DEVICE_CHOICES[number];

/** What `openExecutor` takes: limits and threads as for any executor. */
export interface DeviceOptions extends ExecutorOptions {
  /** "auto": the GPU where there is one, and the CPU alone where there is none. */
  readonly device: DeviceChoice;
  /** Most bytes of the GPU's memory to take; default: what is free. */
  readonly gpuMemory?: number;
  /** Told why, in one line, when the plan has work for a GPU and the CPU does it. */
  readonly onFallback?: (why: string) => void;
}

/** @throws {HcinferError} "environment" when `device` is "cuda" and no GPU can be used */
export function requireDevice(device: DeviceChoice): void {
  const problem = device === "cuda" ? gpuProblem() : undefined;
  if (problem !== undefined) throw new HcinferError("environment", `${problem}; use --device cpu`);
}

/** An executor of a device, which says how corrections run: as asked, or as the plan for this machine chose. */
export interface DeviceExecutor extends Executor {
  /** Positions that the cache has room for, beside those that sequences hold. */
  readonly freePositions: number;
  readonly mode: Plan["corrections"]["mode"];
}

/**
 * An executor on the device that is asked for, its plan placed anew where it was made for another machine or context.
 * @throws {HcinferError} "environment" when `device` is "cuda" and there is no GPU to use, "usage" for options that contradict
 *   each other or less memory than the smallest plan takes, and what the executor's own constructor throws
 */
export function openExecutor(bundle: MappedBundle, options: DeviceOptions): DeviceExecutor {
  const { device, gpuMemory, onFallback, ...rest } = options;
  if (device === "cpu" && gpuMemory !== undefined) {
    throw new HcinferError(
      "usage",
      "a limit of the GPU's memory was given for the CPU: leave one of both out",
    );
  }
  requireDevice(device);
  const problem = device === "cpu" ? undefined : gpuProblem();
  if (device !== "cpu" && problem === undefined) {
    const planned = plannedForGpu(bundle, options);
    if (usesGpu(planned.plan.graph)) return createCudaExecutor(planned, options);
    onFallback?.("the GPU has no room for a layer; running on the CPU");
  } else if (problem !== undefined && (gpuMemory !== undefined || usesGpu(bundle.plan.graph))) {
    onFallback?.(`${problem}; running on the CPU`);
  }
  return createCpuExecutor(plannedForCpu(bundle, options), rest);
}

/** The bundle as planned for the GPU that is there, and for what is free of its memory. */
function plannedForGpu(bundle: MappedBundle, { device, gpuMemory, threads, ...limits }: DeviceOptions) {
  using context = Context.retain(Driver.open(), undefined, { schedule: "spin" });
  const { gpu = undefined, ...machine } = machineOf(bundle.plan, threads);
  const known = gpu?.name === context.device.name ? gpu : describeGpu(context);
  const here = gpuMemory === undefined ? { ...known, memory: context.memory().free } : known;
  return withPlan(bundle, {
    profile: { ...machine, gpu: here },
    threads: Math.min(threads, machine.cpu.cores),
    limits,
    ...(gpuMemory === undefined ? {} : { gpuMemory }),
    device: device === "cuda" ? "gpu" : "auto",
  });
}

function plannedForCpu(bundle: MappedBundle, { threads, ...limits }: DeviceOptions): MappedBundle {
  if (!usesGpu(bundle.plan.graph)) return bundle;
  return withPlan(bundle, { profile: machineOf(bundle.plan, threads), threads, limits, device: "cpu" });
}

function withPlan(bundle: MappedBundle, options: Parameters<typeof replan>[1]): MappedBundle {
  const { mapping } = bundle;
  return { mapping, plan: replan(bundle.plan, options), tensor: (name) => bundle.tensor(name) };
}

/** The machine that the bundle was compiled for. */
function machineOf(plan: Plan, threads: number): MachineProfile {
  return profileOf(plan) ?? genericProfile(threads);
}
