/** A device, and its primary context: what memory, modules and streams belong to. */
import { HcinferError } from "../../compiler/errors.ts";
import { cudaVersion, Driver, DriverError, handle } from "./driver.ts";
import type { DeviceShape } from "./launch.ts";
import { ATTRIBUTE, type ContextHandle, SCHEDULE } from "./symbols.ts";

/** The least compute capability that the kernels are compiled for. */
const LEAST_CAPABILITY = 75;

export interface Device extends DeviceShape {
  readonly ordinal: number;
  readonly name: string;
  /** Bytes of its memory. */
  readonly totalMemory: number;
  /** Bytes of shared memory that a block may have at most. */
  readonly mostShared: number;
  /** Newest CUDA version that the driver knows, as `12.4`. */
  readonly driverVersion: string;
}

/** All devices of the driver. Throws HcinferError("environment") where there is none. */
export function devices(driver: Driver): Device[] {
  const { calls } = driver;
  const count = int((out) => calls.cuDeviceGetCount(out));
  if (count === 0) throw new HcinferError("environment", "the NVIDIA driver finds no GPU");
  return Array.from({ length: count }, (_, index) => {
    const ordinal = int((out) => calls.cuDeviceGet(out, index));
    const attribute = (which: number) => int((out) => calls.cuDeviceGetAttribute(out, which, ordinal));
    const name = new Uint8Array(new ArrayBuffer(256));
    calls.cuDeviceGetName(name, name.length, ordinal);
    return {
      ordinal,
      name: new TextDecoder().decode(name.subarray(0, name.indexOf(0))),
      capability: 10 * attribute(ATTRIBUTE.capabilityMajor) + attribute(ATTRIBUTE.capabilityMinor),
      multiprocessors: attribute(ATTRIBUTE.multiprocessors),
      mostShared: attribute(ATTRIBUTE.mostShared),
      totalMemory: Number(handle((out) => calls.cuDeviceTotalMem_v2(out, ordinal))),
      driverVersion: cudaVersion(driver.version),
    };
  });
}

function int(write: (out: Uint8Array<ArrayBuffer>) => void): number {
  const out = new Int32Array(new ArrayBuffer(4));
  write(new Uint8Array(out.buffer));
  return out[0]!;
}

/** @throws {HcinferError} "environment" for a device that the kernels do not run on */
export function requireCapability({ name, capability }: Device): void {
  if (capability >= LEAST_CAPABILITY) return;
  const version = (tenfold: number) => (tenfold / 10).toFixed(1);
  throw new HcinferError(
    "environment",
    `${name} has compute capability ${version(capability)}; the kernels need ${
      version(LEAST_CAPABILITY)
    } or newer ` +
      "(Turing, 2018)",
  );
}

export interface ContextOptions {
  /**
   * How a thread waits for the device. Default: blocking, as cores that spin are taken from the CPU's lane; it costs some
   * tens of microseconds a wait.
   */
  readonly schedule?: keyof typeof SCHEDULE;
}

/**
 * The primary context of a device, current on this thread. Everything made in it must be disposed of before it is, or
 * is gone with `reset`.
 */
export class Context implements Disposable {
  readonly handle: ContextHandle;
  #open = true;

  private constructor(readonly driver: Driver, readonly device: Device, options: ContextOptions) {
    const { calls } = driver;
    calls.cuDevicePrimaryCtxSetFlags_v2(device.ordinal, SCHEDULE[options.schedule ?? "blocking"]);
    this.handle = handle((out) => calls.cuDevicePrimaryCtxRetain(out, device.ordinal));
    calls.cuCtxSetCurrent(this.handle);
  }

  /** @throws {HcinferError} "environment" for a device that the kernels do not run on */
  static retain(driver: Driver, device = devices(driver)[0]!, options: ContextOptions = {}): Context {
    requireCapability(device);
    return new Context(driver, device, options);
  }

  /** The driver's functions. Throws when the context was given up or reset. */
  get calls(): Driver["calls"] {
    this.assertOpen();
    return this.driver.calls;
  }

  assertOpen(): void {
    if (!this.#open) throw new Error("the GPU's context was given up or reset");
  }

  /** Bytes of the device's memory: free (for all programs together) and in all. */
  memory(): { readonly free: number; readonly total: number } {
    let free = 0n;
    const total = handle((total) => {
      free = handle((out) => this.calls.cuMemGetInfo_v2(out, total));
    });
    return { free: Number(free), total: Number(total) };
  }

  /** Waits for everything that was started in the context. */
  synchronize(): void {
    this.calls.cuCtxSynchronize();
  }

  /** Runs what gives something of the context back. Where the context is gone or lost, so is what was to be given back. */
  release(give: (calls: Driver["calls"]) => void): void {
    if (!this.#open) return;
    try {
      give(this.driver.calls);
    } catch (error) {
      if (!(error instanceof DriverError && error.lost)) throw error;
    }
  }

  /**
   * After a sticky error: ends the context with all its memory, modules and streams, those of other `Context`s of this
   * device too, so that a new one can be retained. Throws where the driver cannot: then the process must be started again.
   * Views of pinned memory are invalid from here on.
   */
  reset(): void {
    if (!this.#open) return;
    this.#open = false;
    const { calls } = this.driver, { ordinal } = this.device;
    calls.cuDevicePrimaryCtxReset_v2(ordinal);
    try {
      // A reset does not count as a release (cuda.h), where it leaves something to release.
      calls.cuDevicePrimaryCtxRelease_v2(ordinal);
    } catch (error) {
      if (!(error instanceof DriverError)) throw error;
    }
  }

  [Symbol.dispose](): void {
    this.release((calls) => calls.cuDevicePrimaryCtxRelease_v2(this.device.ordinal));
    this.#open = false;
  }
}

/** What the driver made in a context and must be told to give up. */
export abstract class Resource<H extends bigint> implements Disposable {
  #handle: H | undefined;

  protected constructor(readonly context: Context, handle: H) {
    this.#handle = handle;
  }

  /** For calls of the driver. Throws when the resource was disposed of, or its context is gone. */
  get handle(): H {
    if (this.#handle === undefined) throw new Error(`the GPU's ${this.constructor.name} was disposed of`);
    this.context.assertOpen();
    return this.#handle;
  }

  protected abstract destroy(calls: Driver["calls"], handle: H): void;

  /** Gives it up. A second call does nothing. */
  [Symbol.dispose](): void {
    const handle = this.#handle;
    this.#handle = undefined;
    if (handle !== undefined) this.context.release((calls) => this.destroy(calls, handle));
  }
}
