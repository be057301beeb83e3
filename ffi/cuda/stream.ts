/** Streams of work in order, events in them, and graphs recorded from them. */
import type { Context } from "./context.ts";
import { handle } from "./driver.ts";
import {
  CAPTURE_THREAD_LOCAL,
  type EventHandle,
  type GraphExecHandle,
  type GraphHandle,
  STREAM_NON_BLOCKING,
  type StreamHandle,
} from "./symbols.ts";

/** Work in order. Other streams, the driver's own among them, are not waited for. */
export class Stream implements Disposable {
  readonly handle: StreamHandle;
  #open = true;

  constructor(readonly context: Context) {
    this.handle = handle((out) => context.calls.cuStreamCreate(out, STREAM_NON_BLOCKING));
  }

  /** Waits for all of it. Throws what its work failed with. */
  synchronize(): void {
    this.context.calls.cuStreamSynchronize(this.handle);
  }

  /** What is ordered from here on waits for the event. */
  wait(event: Event): void {
    this.context.calls.cuStreamWaitEvent(this.handle, event.handle, 0);
  }

  /** Records what `work` orders in this stream, instead of doing it, into something that is launched as one. */
  capture(work: () => void): Graph {
    const { calls } = this.context;
    calls.cuStreamBeginCapture_v2(this.handle, CAPTURE_THREAD_LOCAL);
    try {
      work();
    } catch (error) {
      // The recording must end for the stream to be of use; what was recorded is worth nothing, and why is known already.
      try {
        const graph = handle<GraphHandle>((out) => calls.cuStreamEndCapture(this.handle, out));
        calls.cuGraphDestroy(graph);
      } catch {
        // It was invalid.
      }
      throw error;
    }
    const graph = handle<GraphHandle>((out) => calls.cuStreamEndCapture(this.handle, out));
    try {
      const executable = handle<GraphExecHandle>((out) => calls.cuGraphInstantiateWithFlags(out, graph, 0n));
      return new Graph(this.context, executable);
    } finally {
      this.context.release(() => calls.cuGraphDestroy(graph));
    }
  }

  [Symbol.dispose](): void {
    if (this.#open) this.context.release((calls) => calls.cuStreamDestroy_v2(this.handle));
    this.#open = false;
  }
}

/** Recorded work, ready to be launched. What it reads and writes must live as long as it does. */
export class Graph implements Disposable {
  #open = true;

  constructor(readonly context: Context, readonly handle: GraphExecHandle) {}

  launch(stream: Stream): void {
    this.context.calls.cuGraphLaunch(this.handle, stream.handle);
  }

  [Symbol.dispose](): void {
    if (this.#open) this.context.release((calls) => calls.cuGraphExecDestroy(this.handle));
    this.#open = false;
  }
}

/** A point in a stream's work: to wait for, or to measure time from. */
export class Event implements Disposable {
  readonly handle: EventHandle;
  #open = true;

  constructor(readonly context: Context) {
    this.handle = handle((out) => context.calls.cuEventCreate(out, 0));
  }

  record(stream: Stream): void {
    this.context.calls.cuEventRecord(this.handle, stream.handle);
  }

  /** Waits until the stream has come to where the event was last recorded. */
  synchronize(): void {
    this.context.calls.cuEventSynchronize(this.handle);
  }

  /** Milliseconds from `earlier` to this event. Both must have been reached. */
  since(earlier: Event): number {
    const out = new Float32Array(new ArrayBuffer(4));
    this.context.calls.cuEventElapsedTime(new Uint8Array(out.buffer), earlier.handle, this.handle);
    return out[0]!;
  }

  [Symbol.dispose](): void {
    if (this.#open) this.context.release((calls) => calls.cuEventDestroy_v2(this.handle));
    this.#open = false;
  }
}
