/** Kernels: modules of them, loaded from an image, and their launches. */
import { HcinferError } from "../../compiler/errors.ts";
import type { Context } from "./context.ts";
import { cudaVersion, DriverError, handle } from "./driver.ts";
import {
  FUNCTION_MOST_DYNAMIC_SHARED,
  type FunctionHandle,
  JIT,
  type ModuleHandle,
  STATUS,
} from "./symbols.ts";
import type { Stream } from "./stream.ts";

const LOG_BYTES = 8192;
/** Dynamic shared memory that a kernel may have without asking. */
const SHARED_UNASKED = 48 * 1024;

const addressOf = (buffer: ArrayBuffer) =>
  BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(new Uint8Array(buffer))));
const zeroTerminated = (text: string) => new TextEncoder().encode(`${text}\0`);

/** A module of kernels. Its functions are of no use once it is disposed of. */
export class Module implements Disposable {
  readonly #handle: ModuleHandle;
  readonly #functions = new Map<string, KernelFunction>();
  #open = true;

  /**
   * @param name for messages
   * @param image PTX (which the driver compiles for the device), or what else cuModuleLoadData takes
   * @throws {DriverError} with the compiler's log
   */
  constructor(readonly context: Context, readonly name: string, image: Uint8Array) {
    const { calls, driver } = context;
    // PTX is text that ends with a zero.
    const terminated = new Uint8Array(new ArrayBuffer(image.length + 1));
    terminated.set(image);
    const log = new Uint8Array(new ArrayBuffer(LOG_BYTES));
    const options = Int32Array.of(JIT.errorLog, JIT.errorLogBytes);
    const values = BigUint64Array.of(addressOf(log.buffer), BigInt(LOG_BYTES));
    try {
      this.#handle = handle((out) =>
        calls.cuModuleLoadDataEx(
          out,
          terminated,
          options.length,
          new Uint8Array(options.buffer),
          new Uint8Array(values.buffer),
        )
      );
    } catch (error) {
      if (!(error instanceof DriverError)) throw error;
      const end = log.indexOf(0);
      const said = new TextDecoder().decode(log.subarray(0, end < 0 ? LOG_BYTES : end)).trim();
      const advice = error.status === STATUS.unsupportedPtxVersion
        ? `\nthe driver is of CUDA ${cudaVersion(driver.version)}: update it`
        : "";
      throw driver.error(
        error.call,
        error.status,
        `\nwhile the kernels of ${name} were loaded${said ? `:\n${said}` : ""}${advice}`,
      );
    }
  }

  /** The kernel of this name. Throws DriverError when there is none. */
  function(name: string): KernelFunction {
    let found = this.#functions.get(name);
    if (found === undefined) {
      const { context } = this;
      try {
        const function_ = handle<FunctionHandle>((out) =>
          context.calls.cuModuleGetFunction(out, this.#handle, zeroTerminated(name))
        );
        found = new KernelFunction(context, `${this.name}: ${name}`, function_);
      } catch (error) {
        if (!(error instanceof DriverError) || error.status !== STATUS.notFound) throw error;
        throw context.driver.error(error.call, error.status, `\nthere is no kernel ${name} in ${this.name}`);
      }
      this.#functions.set(name, found);
    }
    return found;
  }

  [Symbol.dispose](): void {
    if (this.#open) this.context.release((calls) => calls.cuModuleUnload(this.#handle));
    this.#open = false;
  }
}

export class KernelFunction {
  #shared = SHARED_UNASKED;

  constructor(readonly context: Context, readonly name: string, readonly handle: FunctionHandle) {}

  /** Lets launches have `bytes` of dynamic shared memory. Throws HcinferError when the device has less. */
  allowShared(bytes: number): void {
    if (bytes <= this.#shared) return;
    const { device, calls } = this.context;
    if (bytes > device.mostShared) {
      throw new HcinferError(
        "environment",
        `${this.name} needs ${bytes} bytes of shared memory a block; ${device.name} has ${device.mostShared}`,
      );
    }
    calls.cuFuncSetAttribute(this.handle, FUNCTION_MOST_DYNAMIC_SHARED, bytes);
    this.#shared = bytes;
  }
}

export interface LaunchShape {
  readonly grid: readonly [x: number, y: number, z: number];
  /** Threads of a block. */
  readonly block: number;
  /** Bytes of dynamic shared memory. */
  readonly shared?: number;
}

/**
 * A kernel with its parameters, to be launched any number of times. The driver takes the parameters' values at the launch,
 * so they may be changed between two.
 */
export class PreparedLaunch {
  /** The parameters' bytes, one array each. */
  readonly parameters: readonly Uint8Array<ArrayBuffer>[];
  /** Addresses of the parameters, in one buffer with them. */
  readonly #pointers: Uint8Array<ArrayBuffer>;

  /** @param parameters one for each of the kernel's, each of its size; copied */
  constructor(
    readonly kernel: KernelFunction,
    readonly shape: LaunchShape,
    parameters: readonly Uint8Array[],
  ) {
    kernel.allowShared(shape.shared ?? 0);
    const table = 8 * parameters.length;
    const bytes = parameters.reduce((sum, { length }) => sum + padded(length), table);
    const buffer = new ArrayBuffer(bytes);
    const base = addressOf(buffer), pointers = new BigUint64Array(buffer, 0, parameters.length);
    let at = table;
    this.parameters = parameters.map((parameter, i) => {
      pointers[i] = base + BigInt(at);
      const own = new Uint8Array(buffer, at, parameter.length);
      own.set(parameter);
      at += padded(parameter.length);
      return own;
    });
    this.#pointers = new Uint8Array(buffer, 0, table);
  }

  launch(stream: Stream): void {
    const { grid, block, shared = 0 } = this.shape;
    this.kernel.context.calls.cuLaunchKernel(
      this.kernel.handle,
      ...grid,
      block,
      1,
      1,
      shared,
      stream.handle,
      this.#pointers,
      null,
    );
  }
}

/** Parameters start at multiples of 16 bytes, as a structure in C++ may want. */
const padded = (bytes: number) => Math.ceil(bytes / 16) * 16;

/** Launches a kernel once. @param parameters as PreparedLaunch has them */
export function launch(
  kernel: KernelFunction,
  shape: LaunchShape,
  stream: Stream,
  parameters: readonly Uint8Array[],
): void {
  new PreparedLaunch(kernel, shape, parameters).launch(stream);
}
