/** Kernels: modules of them, loaded from an image, and their launches. */
import { HcinferError } from "../../compiler/errors.ts";
import { type Context, Resource } from "./context.ts";
import { type Calls, cudaVersion, DriverError, handle, word } from "./driver.ts";
import {
  FUNCTION_MOST_DYNAMIC_SHARED,
  type FunctionHandle,
  JIT,
  type ModuleHandle,
  STATUS,
} from "./symbols.ts";
import type { Stream } from "./stream.ts";

const LOG_BYTES = 8192;

const addressOf = (buffer: ArrayBuffer) =>
  BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(new Uint8Array(buffer))));
const zeroTerminated = (text: string) => new TextEncoder().encode(`${text}\0`);

/** A module of kernels. Its functions are of no use once it is disposed of. */
export class Module extends Resource<ModuleHandle> {
  readonly #functions = new Map<string, KernelFunction>();

  /**
   * @param name for messages
   * @param image PTX (which the driver compiles for the device), or what else cuModuleLoadDataEx takes
   * @throws {DriverError} with the compiler's log
   */
  constructor(context: Context, readonly name: string, image: Uint8Array) {
    super(context, load(context, name, image));
  }

  /** The kernel of this name. Throws DriverError when there is none. */
  function(name: string): KernelFunction {
    let found = this.#functions.get(name);
    if (found === undefined) {
      const { context } = this;
      try {
        const function_ = handle<FunctionHandle>((out) =>
          context.calls.cuModuleGetFunction(out, this.handle, zeroTerminated(name))
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

  protected override destroy(calls: Calls, handle: ModuleHandle): void {
    calls.cuModuleUnload(handle);
  }
}

function load(context: Context, name: string, image: Uint8Array): ModuleHandle {
  const { calls, driver } = context;
  // PTX is text that ends with a zero.
  const terminated = new Uint8Array(new ArrayBuffer(image.length + 1));
  terminated.set(image);
  const log = new Uint8Array(new ArrayBuffer(LOG_BYTES));
  const options = new Uint8Array(Int32Array.of(JIT.errorLog, JIT.errorLogBytes).buffer);
  const values = new Uint8Array(BigUint64Array.of(addressOf(log.buffer), BigInt(LOG_BYTES)).buffer);
  try {
    return handle((out) => calls.cuModuleLoadDataEx(out, terminated, 2, options, values));
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

export class KernelFunction {
  /** How much was asked for. Without asking a kernel may have 48 KiB, its static shared memory included. */
  #shared = 0;
  #parameters: readonly number[] | undefined;

  constructor(readonly context: Context, readonly name: string, readonly handle: FunctionHandle) {}

  /** Throws HcinferError unless the kernel takes parameters of these sizes, where the driver can say so. */
  checkParameters(sizes: readonly number[]): void {
    const { driver } = this.context;
    if (driver.missing.has("cuFuncGetParamInfo")) return;
    const expected = this.#parameters ??= parameterSizes(this.context, this.handle);
    if (expected.length === sizes.length && expected.every((size, i) => size === sizes[i])) return;
    throw new HcinferError(
      "environment",
      `${this.name} takes parameters of ${expected.join(", ")} bytes, not ${sizes.join(", ")}: ` +
        `the kernels are of another version\nrun: deno task build:cuda`,
    );
  }

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

/** Sizes of a kernel's parameters, as it was compiled. */
function parameterSizes({ calls }: Context, function_: FunctionHandle): number[] {
  const sizes: number[] = [];
  for (;;) {
    try {
      const size = handle((size) =>
        calls.cuFuncGetParamInfo(function_, BigInt(sizes.length), word().bytes, size)
      );
      sizes.push(Number(size));
    } catch (error) {
      // That was behind the last one.
      if (error instanceof DriverError && error.status === STATUS.invalidValue) return sizes;
      throw error;
    }
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
    kernel.checkParameters(parameters.map(({ length }) => length));
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
