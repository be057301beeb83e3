/**
 * The cuda executor: the backbone on a GPU, corrections and what the GPU has no room for on the CPU, a decode step one launch.
 */
import { HcinferError } from "../../../compiler/errors.ts";
import { limitsOf, type Memory, memoryOf } from "../../../compiler/memory.ts";
import { correctionMode, type Plan } from "../../../compiler/plan.ts";
import { Context, devices } from "../../../ffi/cuda/context.ts";
import { Driver, DriverError } from "../../../ffi/cuda/driver.ts";
import { checkThreads, type MappedBundle } from "../cpu/executor.ts";
import type { ProgramMode } from "../cpu/program.ts";
import type { ExecutorOptions } from "../../executor.ts";
import { PagedExecutor } from "../paged.ts";
import { CudaDevice } from "./device.ts";
import { programOf } from "./program.ts";
import { Staging } from "./tensors.ts";

export interface CudaOptions extends ExecutorOptions {
  /** Bytes of the GPU's memory that may be taken; default: all that is free. */
  readonly gpuMemory?: number;
  /** Milliseconds that a lane waits for the other before the step is given up. Default: 1000, on the simulator 60,000. */
  readonly patience?: number;
}

/**
 * Opens the GPU and puts the bundle's plan on it, which must have nodes there (compiler/replan.ts moves them).
 * @throws {HcinferError} "environment": no driver or GPU, or no memory left there; "usage": impossible threads, a context
 *   the model was not made for, less memory allowed than the plan needs; "bundle": a plan that does not fit its weights
 */
export function createCudaExecutor(bundle: MappedBundle, options: CudaOptions): CudaExecutor {
  checkThreads(options.threads);
  const { plan } = bundle;
  const driver = Driver.open();
  // One thread is enough for a CPU that only corrects.
  const mode = correctionMode(plan, options.corrections, Math.max(2, options.threads));
  const memory = memoryOf(plan, limitsOf(plan.model, options, true));
  const context = Context.retain(driver, devices(driver)[0]!, { schedule: "spin" });
  try {
    return new CudaExecutor(plan, memory, mode, context, putOn(context, bundle, plan, memory, mode, options));
  } catch (error) {
    leave(context, error instanceof DriverError && error.lost);
    throw error;
  }
}

/** A lost context fails every later call of this process, unless it is reset. */
function leave(context: Context, isLost: boolean): void {
  if (isLost) context.reset();
  else context[Symbol.dispose]();
}

function putOn(
  context: Context,
  bundle: MappedBundle,
  plan: Plan,
  memory: Memory,
  mode: ProgramMode,
  { threads, gpuMemory, patience }: CudaOptions,
): CudaDevice {
  if (memory.device === null) {
    throw new HcinferError(
      "usage",
      "the plan has nothing on the GPU: compile it for one, or let it be placed anew",
    );
  }
  const read = (tensor: string) => bundle.tensor(tensor).bytes;
  const staging = new Staging(read);
  const weight = (tensor: string) =>
    ({ segment: "weights", offset: memory.deviceTensors.get(tensor)! }) as const;
  const host = {
    weight: (tensor: string) => {
      const { byteOffset } = bundle.tensor(tensor).bytes;
      return { segment: "weights", offset: byteOffset - bundle.mapping.bytes.byteOffset } as const;
    },
  };
  const program = (as: "decode" | "prefill") =>
    programOf({ plan, memory, as, mode, device: { weight, staged: staging.place }, host });
  return new CudaDevice({
    context,
    bundle,
    memory,
    programs: { decode: program("decode"), prefill: program("prefill") },
    staging,
    threads,
    patience: patience ?? (context.driver.kind === "sim" ? 60_000 : 1000),
    limit: gpuMemory ?? context.memory().free,
  });
}

export class CudaExecutor extends PagedExecutor {
  readonly name: string;
  /** How corrections run: what was asked, or what the plan chose. */
  readonly mode: ProgramMode;
  readonly #device: CudaDevice;
  readonly #context: Context;

  constructor(plan: Plan, memory: Memory, mode: ProgramMode, context: Context, device: CudaDevice) {
    super(plan.model, memory, device);
    this.mode = mode;
    this.#context = context;
    this.#device = device;
    this.name = `cuda (${context.device.name})`;
  }

  /** Bytes of the GPU's memory that it holds. */
  get deviceBytes(): number {
    return this.#device.deviceBytes;
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    leave(this.#context, this.#device.isLost);
  }
}
