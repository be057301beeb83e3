/** Copies within the host's memory that run in a stream's order, on a thread of the driver. */
import { NativeMemory } from "../mapping.ts";
import { library } from "../open.ts";
import type { Stream } from "./stream.ts";

export interface HostCopyPart {
  readonly to: NativeMemory;
  readonly offset: number;
  /** Memory that stays where it is: a view of a mapped file. */
  readonly from: Uint8Array;
}

/** Parts that are copied together, any number of times. They and this must live until the stream is done with it. */
export class HostCopy {
  /** The structure Parts of host_copy.cpp. */
  readonly #table: BigUint64Array<ArrayBuffer>;
  readonly #address: Deno.PointerValue;

  /** @throws {RangeError} for a part that does not lie in the memory it goes to */
  constructor(parts: readonly HostCopyPart[]) {
    const addressOf = ({ buffer, byteOffset }: Uint8Array) =>
      Deno.UnsafePointer.value(Deno.UnsafePointer.of(buffer as ArrayBuffer)) + BigInt(byteOffset);
    this.#table = BigUint64Array.from([
      BigInt(parts.length),
      ...parts.flatMap(({ to, offset, from }) => [
        addressOf(to.view(offset, from.length)),
        addressOf(from),
        BigInt(from.length),
      ]),
    ]);
    this.#address = Deno.UnsafePointer.of(this.#table);
  }

  order(stream: Stream): void {
    stream.context.calls.cuLaunchHostFunc(stream.handle, library().hc_copy_parts, this.#address);
  }
}
