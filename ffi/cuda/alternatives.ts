/** Ways in which the CPU and a stream could meet that the executor does not take: for measuring them beside its own. */
import { HcinferError } from "../../compiler/errors.ts";
import { open } from "../open.ts";
import type { Driver } from "./driver.ts";
import type { Stream } from "./stream.ts";
import type { DevicePointer } from "./symbols.ts";

const OPTIONAL = { optional: true, result: "i32" } as const;
const SYMBOLS = {
  cuStreamWaitValue64_v2: { ...OPTIONAL, parameters: ["u64", "u64", "u64", "u32"] },
  cuStreamWriteValue64_v2: { ...OPTIONAL, parameters: ["u64", "u64", "u64", "u32"] },
  cuLaunchHostFunc: { ...OPTIONAL, parameters: ["u64", "pointer", "pointer"] },
} as const;

/** Stream memory operations: the stream itself waits until a word in memory is at least `value`, and writes one. */
export interface MemoryOperations {
  readonly wait: (stream: Stream, at: DevicePointer, value: number) => void;
  readonly write: (stream: Stream, at: DevicePointer, value: number) => void;
}

/** @throws {HcinferError} "environment" where the driver lacks them */
export function memoryOperations(driver: Driver): MemoryOperations {
  const { symbols: { cuStreamWaitValue64_v2: wait, cuStreamWriteValue64_v2: write } } = open(
    driver.library,
    SYMBOLS,
  );
  if (!wait || !write) throw missing(driver, "cuStreamWaitValue64");
  const GREATER_OR_EQUAL = 0;
  return {
    wait: (stream, at, value) =>
      check("cuStreamWaitValue64", wait(stream.handle, at, BigInt(value), GREATER_OR_EQUAL)),
    write: (stream, at, value) => check("cuStreamWriteValue64", write(stream.handle, at, BigInt(value), 0)),
  };
}

/**
 * Orders a call of a function of the CPU that does nothing, `free(NULL)`, in the stream's order.
 * @throws {HcinferError} "environment" where the driver lacks it
 */
export function hostFunction(driver: Driver): (stream: Stream) => void {
  const { symbols: { cuLaunchHostFunc: launch } } = open(driver.library, SYMBOLS);
  if (!launch) throw missing(driver, "cuLaunchHostFunc");
  const { symbols: { free } } = open("libc.so.6", { free: { type: "pointer" } });
  return (stream) => check("cuLaunchHostFunc", launch(stream.handle, free, null));
}

function check(call: string, status: number): void {
  if (status !== 0) throw new HcinferError("environment", `${call} answers ${status}`);
}

function missing({ library }: Driver, name: string): HcinferError {
  return new HcinferError("environment", `${library} has no ${name}`);
}
