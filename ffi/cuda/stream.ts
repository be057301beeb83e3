/** Streams of work in order, events in them, and graphs recorded from them. */
import { library } from "../open.ts";
import { type Context, Resource } from "./context.ts";
import { type Calls, handle } from "./driver.ts";
import {
  CAPTURE_THREAD_LOCAL,
  EVENT_DISABLE_TIMING,
  type EventHandle,
  type GraphExecHandle,
  type GraphHandle,
  STREAM_NON_BLOCKING,
  type StreamHandle,
} from "./symbols.ts";

/** Work in order. Other streams, the driver's own among them, are not waited for. */
export class Stream extends Resource<StreamHandle> {
  /** Of waits on other threads: 1 when they no longer use the stream. */
  readonly #waits = new Set<Int32Array<ArrayBuffer>>();

  constructor(context: Context) {
    super(context, handle((out) => context.calls.cuStreamCreate(out, STREAM_NON_BLOCKING)));
  }

  /** Waits for all of it. Throws what its work failed with. */
  synchronize(): void {
    this.context.calls.cuStreamSynchronize(this.handle);
  }

  /**
   * `synchronize` on another thread: JavaScript goes on meanwhile, but must not dispose of what the stream works on. Disposing
   * of the stream waits for it. Throws what its work failed with.
   */
  async finished(): Promise<void> {
    const { setCurrent, synchronize, context, stream } = this.native;
    const left = new Int32Array(new ArrayBuffer(4));
    const wait = library().hc_device_wait(
      setCurrent,
      synchronize,
      context,
      stream,
      new Uint8Array(left.buffer),
    );
    this.#waits.add(left);
    const status = await wait;
    this.#waits.delete(left);
    if (status !== 0) throw this.context.driver.error("cuStreamSynchronize", status);
  }

  override [Symbol.dispose](): void {
    for (const left of this.#waits) while (Atomics.load(left, 0) === 0);
    super[Symbol.dispose]();
  }

  /** What native code needs to wait for it. */
  get native() {
    const { driver: { addresses }, handle } = this.context;
    return { ...addresses, context: handle, stream: this.handle };
  }

  /**
   * Lets what was ordered begin, before anybody waits for the stream: on Windows and in WSL the driver gathers work until it is
   * asked about it.
   */
  flush(): void {
    this.context.calls.cuStreamQuery(this.handle);
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

  protected override destroy(calls: Calls, handle: StreamHandle): void {
    calls.cuStreamDestroy_v2(handle);
  }
}

/** Recorded work, ready to be launched. What it reads and writes must live as long as it does. */
export class Graph extends Resource<GraphExecHandle> {
  constructor(context: Context, executable: GraphExecHandle) {
    super(context, executable);
  }

  launch(stream: Stream): void {
    this.context.calls.cuGraphLaunch(this.handle, stream.handle);
  }

  protected override destroy(calls: Calls, handle: GraphExecHandle): void {
    calls.cuGraphExecDestroy(handle);
  }
}

/** A point in a stream's work: to wait for, or to measure time from. */
export class Event extends Resource<EventHandle> {
  /** @param options isTimed: whether `since` can be asked; an event that is not is faster to wait for */
  constructor(context: Context, { isTimed = true } = {}) {
    super(context, handle((out) => context.calls.cuEventCreate(out, isTimed ? 0 : EVENT_DISABLE_TIMING)));
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

  protected override destroy(calls: Calls, handle: EventHandle): void {
    calls.cuEventDestroy_v2(handle);
  }
}
