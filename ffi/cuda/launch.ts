/** How an instruction becomes launches of kernels: the form of the rules that stand beside the kernels (kernels/*.ts). */
import type { KernelOp } from "./parameters.ts";

/** What a rule knows of the step. Counts are exact; a recorded launch serves all steps of the same, up to `context`. */
export interface StepShape {
  /** Tokens or rows that the instruction runs over. */
  readonly n: number;
  readonly tokens: number;
  readonly tiles: number;
  /** No token of the step stands at this position or later. */
  readonly context: number;
}

export interface DeviceShape {
  /** 10 * major + minor of the compute capability. */
  readonly capability: number;
  readonly multiprocessors: number;
}

export interface Launch {
  /** Name of a kernel, and the file in kernels/ that has it, without its ending. */
  readonly kernel: string;
  readonly module: string;
  readonly grid: readonly [x: number, y: number, z: number];
  /** Threads of a block, in one dimension. */
  readonly block: number;
  /** Bytes of dynamic shared memory. */
  readonly shared?: number;
  /** Bytes of scratch in device memory; launches of one instruction see the same. */
  readonly scratch?: number;
  /** `chunks` of the call. */
  readonly chunks?: number;
}

/**
 * The launches of one instruction, in order; none where it has nothing to do. The first waits, the last mirrors and
 * signals. No result may depend on `n`, `tokens`, `tiles`, `context` or the device's number of multiprocessors.
 */
export type LaunchRule = (
  integers: Readonly<Record<string, number>>,
  step: StepShape,
  device: DeviceShape,
) => readonly Launch[];

export type LaunchRules = { readonly [P in KernelOp]: LaunchRule };
