/** Memory of the device, and pinned memory of the host, which the device reads and writes too. */
import { NativeMemory } from "../mapping.ts";
import { type Context, Resource } from "./context.ts";
import { type Calls, DriverError, handle } from "./driver.ts";
import {
  type DevicePointer,
  HOST_ALLOC_DEVICEMAP,
  HOST_ALLOC_PORTABLE,
  type HostPointer,
  STATUS,
  type StreamHandle,
} from "./symbols.ts";
import type { Stream } from "./stream.ts";

/** The driver's own stream, which calls without one use. */
const DEFAULT_STREAM = 0n as StreamHandle;

/** Memory of the device. Nothing is known of its content until it is written. */
export class DeviceMemory extends Resource<DevicePointer> {
  private constructor(context: Context, address: DevicePointer, readonly byteLength: number) {
    super(context, address);
  }

  /** @throws {DriverError} that says how much was asked for and how much is free, when there is no room */
  static allocate(context: Context, byteLength: number): DeviceMemory {
    if (!Number.isSafeInteger(byteLength) || byteLength <= 0) {
      throw new RangeError(`cannot allocate ${byteLength} bytes of the GPU's memory`);
    }
    try {
      const address = handle<DevicePointer>((out) => context.calls.cuMemAlloc_v2(out, BigInt(byteLength)));
      return new DeviceMemory(context, address, byteLength);
    } catch (error) {
      throw withSizes(context, error, byteLength);
    }
  }

  /** Where it lies, for kernels. */
  get address(): DevicePointer {
    return this.handle;
  }

  /** Copies `from` to `offset` on. Returns when it is done. */
  write(from: Uint8Array<ArrayBuffer>, offset = 0): void {
    if (from.length === 0) return;
    const { calls } = this.context;
    calls.cuMemcpyHtoD_v2(this.at(offset, from.length), from, BigInt(from.length));
    // The driver returns when it has read `from`; our streams do not wait for the rest.
    calls.cuStreamSynchronize(DEFAULT_STREAM);
  }

  /** Copies what lies from `offset` on into `to`. Returns when it is done; streams that write there must be waited for before. */
  read(to: Uint8Array<ArrayBuffer>, offset = 0): void {
    if (to.length === 0) return;
    this.context.calls.cuMemcpyDtoH_v2(to, this.at(offset, to.length), BigInt(to.length));
  }

  /**
   * Orders a copy from memory of the host, which must not change or be closed before the stream is done with it. Only from
   * pinned memory does it run beside the CPU.
   */
  writeAsync(stream: Stream, from: NativeMemory, range: Range = { length: from.byteLength }): void {
    const { offset = 0, hostOffset = 0, length } = range;
    if (length === 0) return;
    const [device, host] = [this.at(offset, length), hostAddress(from, hostOffset, length)];
    this.context.calls.cuMemcpyHtoDAsync_v2(device, host, BigInt(length), stream.handle);
  }

  /** Orders a copy to memory of the host, as `writeAsync`. */
  readAsync(stream: Stream, to: NativeMemory, range: Range = { length: to.byteLength }): void {
    const { offset = 0, hostOffset = 0, length } = range;
    if (length === 0) return;
    const [host, device] = [hostAddress(to, hostOffset, length), this.at(offset, length)];
    this.context.calls.cuMemcpyDtoHAsync_v2(host, device, BigInt(length), stream.handle);
  }

  /** Orders a copy within the device's memory. */
  copyAsync(
    stream: Stream,
    from: DeviceMemory,
    range: { readonly offset?: number; readonly fromOffset?: number; readonly length?: number } = {},
  ): void {
    const { offset = 0, fromOffset = 0, length = from.byteLength - fromOffset } = range;
    if (length === 0) return;
    const [to, source] = [this.at(offset, length), from.at(fromOffset, length)];
    this.context.calls.cuMemcpyDtoDAsync_v2(to, source, BigInt(length), stream.handle);
  }

  /** Sets `length` bytes from `offset` on to `value`: in the stream's order, or, without one, before it returns. */
  fill(
    value: number,
    { offset = 0, length = this.byteLength - offset, stream }: {
      offset?: number;
      length?: number;
      stream?: Stream;
    } = {},
  ): void {
    if (length === 0) return;
    const to = this.at(offset, length), { calls } = this.context;
    calls.cuMemsetD8Async(to, value, BigInt(length), stream?.handle ?? DEFAULT_STREAM);
    if (stream === undefined) calls.cuStreamSynchronize(DEFAULT_STREAM);
  }

  /** The address of `offset`, from which `length` bytes must be there. */
  at(offset: number, length = 0): DevicePointer {
    inside(offset, length, this.byteLength);
    return this.address + BigInt(offset) as DevicePointer;
  }

  protected override destroy(calls: Calls, address: DevicePointer): void {
    calls.cuMemFree_v2(address);
  }
}

/** Which bytes a copy between device and host is of. */
export interface Range {
  /** In the device's memory. Default: 0. */
  readonly offset?: number;
  /** In the host's memory. Default: 0. */
  readonly hostOffset?: number;
  readonly length: number;
}

/**
 * Memory of the host, locked in place: the engine takes it as a segment, copies from and to it run beside the CPU, and kernels
 * reach it at `deviceAddress`. Not zeroed.
 */
export class PinnedMemory extends NativeMemory {
  readonly deviceAddress: DevicePointer;
  readonly #context: Context;

  private constructor(context: Context, host: HostPointer, byteLength: number) {
    super(Deno.UnsafePointer.create(host), byteLength);
    this.#context = context;
    this.deviceAddress = handle((out) => context.calls.cuMemHostGetDevicePointer_v2(out, host, 0));
  }

  /** @throws {DriverError} that says how much was asked for, when there is no room */
  static allocate(context: Context, byteLength: number): PinnedMemory {
    if (!Number.isSafeInteger(byteLength) || byteLength <= 0) {
      throw new RangeError(`cannot allocate ${byteLength} bytes of pinned memory`);
    }
    try {
      const flags = HOST_ALLOC_DEVICEMAP | HOST_ALLOC_PORTABLE;
      const host = handle<HostPointer>((out) => context.calls.cuMemHostAlloc(out, BigInt(byteLength), flags));
      return new PinnedMemory(context, host, byteLength);
    } catch (error) {
      throw withSizes(context, error, byteLength, "pinned memory of the host");
    }
  }

  protected override free(address: Deno.PointerObject): void {
    const host = BigInt(Deno.UnsafePointer.value(address)) as HostPointer;
    this.#context.release((calls) => calls.cuMemFreeHost(host));
  }
}

function hostAddress(memory: NativeMemory, offset: number, length: number): HostPointer {
  inside(offset, length, memory.byteLength);
  const address = NativeMemory.addressOf(memory);
  if (address === null) throw new Error("the memory is closed");
  return Deno.UnsafePointer.value(address) + BigInt(offset) as HostPointer;
}

function inside(offset: number, length: number, byteLength: number): void {
  if (!(offset >= 0 && length >= 0 && offset + length <= byteLength)) {
    throw new RangeError(`bytes ${offset}..${offset + length} of ${byteLength}`);
  }
}

/** The error, and where it is a lack of memory: how much was asked for, and how much there is. */
function withSizes(context: Context, error: unknown, asked: number, what = "the GPU's memory"): unknown {
  if (!(error instanceof DriverError) || error.status !== STATUS.outOfMemory) return error;
  const { free, total } = context.memory();
  return context.driver.error(
    error.call,
    error.status,
    `\n${size(asked)} of ${what} were asked for; the GPU has ${size(free)} free of ${size(total)}`,
  );
}

function size(bytes: number): string {
  return bytes < 2 ** 20 ? `${bytes} bytes` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
