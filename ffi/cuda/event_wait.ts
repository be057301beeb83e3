/**
 * A stream's wait for an event of the CPU that may take long: on a thread of the driver, while no kernel holds the GPU. (A GPU
 * that draws a screen ends kernels that run for seconds.)
 */
import { NativeMemory } from "../mapping.ts";
import { library } from "../open.ts";
import type { Stream } from "./stream.ts";

/** Where 8 bytes lie. */
export interface Place {
  readonly memory: NativeMemory;
  readonly offset: number;
}

/** Waits until an event has the step's number, or the step is aborted. It and its memory must live until the stream is done. */
export class EventWait {
  /** The structure EventWait of wait.cpp. */
  readonly #places: BigUint64Array<ArrayBuffer>;
  readonly #address: Deno.PointerValue;

  constructor(event: Place, number: Place, abort: Place) {
    const address = ({ memory, offset }: Place) =>
      Deno.UnsafePointer.value(NativeMemory.addressOf(memory)) + BigInt(offset);
    this.#places = BigUint64Array.of(address(event), address(number), address(abort));
    this.#address = Deno.UnsafePointer.of(this.#places);
  }

  order(stream: Stream): void {
    stream.context.calls.cuLaunchHostFunc(stream.handle, library().hc_await_event, this.#address);
  }
}
