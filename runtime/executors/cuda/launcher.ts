/**
 * A program's kernels, made ready for steps of one shape: which kernels an instruction becomes is said by the rules beside
 * them (ffi/cuda/launches.ts); here they get their addresses, and who waits for whom.
 */
import { EVENT_BYTES, MAILBOX_EVENTS } from "../../../compiler/memory.ts";
import type { DeviceShape, Launch } from "../../../ffi/cuda/launch.ts";
import { LAUNCHES } from "../../../ffi/cuda/launches.ts";
import type { Kernels } from "../../../ffi/cuda/kernels.ts";
import { PreparedLaunch } from "../../../ffi/cuda/module.ts";
import { HANDSHAKE } from "../../../ffi/cuda/kernels/mirror.ts";
import { type KernelInstruction, packCall, packParameters } from "../../../ffi/cuda/parameters.ts";
import type { Operand } from "../../../ffi/instructions.ts";
import type { KernelStep } from "./program.ts";

/** Counts of a step; `context`: no token stands at this position or later. */
export interface Shape {
  readonly tokens: number;
  readonly rows: number;
  readonly tiles: number;
  readonly context: number;
}

/** What kernels are given beside their operands, as addresses that the device sees. */
export interface Surroundings {
  readonly addressOf: (operand: Operand) => bigint;
  /** From the device's arena to its twin. */
  readonly twin: bigint;
  readonly report: bigint;
  readonly mailbox: bigint;
  /** A u32 an event. */
  readonly arrivals: bigint;
  readonly scratch: bigint;
  /** Whether every kernel looks if the step was stopped: in prompts, whose kernels are long. */
  readonly checks: boolean;
}

/** Kernels of one instruction, in order. */
export interface Prepared {
  readonly step: KernelStep;
  readonly launches: readonly PreparedLaunch[];
}

/** What an instruction runs over. */
function countOf(step: KernelStep, shape: Shape): number {
  return step.over === "rows" ? shape.rows : shape.tokens;
}

/** The instruction that is launched: one that has nothing to do may still have to wait or to tell. */
function launched(step: KernelStep, shape: Shape): KernelInstruction {
  const meets = step.wait !== undefined || step.signal !== undefined;
  return countOf(step, shape) === 0 && meets ? HANDSHAKE : step.instruction;
}

function launchesOf(step: KernelStep, shape: Shape, device: DeviceShape): readonly Launch[] {
  const { op, integers } = launched(step, shape);
  return LAUNCHES[op](integers, { n: countOf(step, shape), ...shape }, device);
}

/** Bytes of scratch that a program needs for steps of a shape. */
export function scratchBytes(steps: readonly KernelStep[], shape: Shape, device: DeviceShape): number {
  return Math.max(
    0,
    ...steps.flatMap((step) => launchesOf(step, shape, device).map(({ scratch = 0 }) => scratch)),
  );
}

export function prepare(
  steps: readonly KernelStep[],
  shape: Shape,
  kernels: Kernels,
  around: Surroundings,
): Prepared[] {
  const { device } = kernels.context;
  const event = (number: number | undefined) =>
    number === undefined ? 0n : around.mailbox + BigInt(MAILBOX_EVENTS + EVENT_BYTES * number);
  return steps.map((step): Prepared => {
    const launches = launchesOf(step, shape, device);
    const parameters = packParameters(launched(step, shape), around.addressOf);
    return {
      step,
      launches: launches.map((launch, i) => {
        const isLast = i === launches.length - 1;
        const call = packCall({
          n: countOf(step, shape),
          tokens: shape.tokens,
          tiles: shape.tiles,
          chunks: launch.chunks ?? 1,
          checks: around.checks,
          host: isLast && step.mirrors ? around.twin : 0n,
          report: around.report,
          mailbox: around.mailbox,
          wait: i === 0 ? event(step.wait) : 0n,
          signal: isLast ? event(step.signal) : 0n,
          arrivals: around.arrivals + 4n * BigInt(step.signal ?? 0),
          scratch: around.scratch,
        });
        return new PreparedLaunch(kernels.function(launch.module, launch.kernel), launch, [parameters, call]);
      }),
    };
  });
}
