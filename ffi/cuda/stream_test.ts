import assert from "node:assert/strict";
import process from "node:process";
import { DriverError } from "./driver.ts";
import { testDevice } from "./kernels/fixture.ts";
import { DeviceMemory, PinnedMemory } from "./memory.ts";
import { Event, Stream } from "./stream.ts";

const { context } = testDevice();

Deno.test("what is captured runs at every launch of the graph, not before", () => {
  using memory = DeviceMemory.allocate(context, 4);
  using pinned = PinnedMemory.allocate(context, 4);
  using stream = new Stream(context);
  const value = pinned.view(0, 4);
  memory.fill(0);
  using graph = stream.capture(() => memory.writeAsync(stream, pinned));
  const seen = new Uint8Array(4);
  memory.read(seen);
  assert.deepEqual([...seen], [0, 0, 0, 0]);
  for (const next of [1, 2]) {
    value.fill(next);
    graph.launch(stream);
    stream.synchronize();
    memory.read(seen);
    assert.deepEqual([...seen], [next, next, next, next]);
  }
});

Deno.test("a stream is of use after a capture that failed", () => {
  using memory = DeviceMemory.allocate(context, 4);
  using stream = new Stream(context);
  assert.throws(() =>
    stream.capture(() => {
      memory.fill(1, { stream });
      throw new Error("changed my mind");
    }), /changed my mind/);
  using other = new Stream(context);
  assert.throws(() => stream.capture(() => stream.synchronize()), DriverError);
  // Neither is anything else waited for, nor is memory taken.
  assert.throws(() => stream.capture(() => other.synchronize()), DriverError);
  assert.throws(() => stream.capture(() => PinnedMemory.allocate(context, 4)), DriverError);
  memory.fill(3, { stream });
  stream.synchronize();
  const seen = new Uint8Array(1);
  memory.read(seen);
  assert.equal(seen[0], 3);
});

Deno.test("events order streams and tell the time between them", () => {
  using memory = DeviceMemory.allocate(context, 2 ** 20);
  using first = new Stream(context);
  using second = new Stream(context);
  using start = new Event(context);
  using end = new Event(context);
  start.record(first);
  for (let i = 0; i < 256; i++) memory.fill(i, { stream: first });
  end.record(first);
  second.wait(end);
  memory.fill(99, { stream: second, length: 1 });
  second.synchronize();
  end.synchronize();
  assert.ok(end.since(start) > 0);
  const seen = new Uint8Array(2);
  memory.read(seen);
  assert.deepEqual([...seen], [99, 255]);
});

Deno.test("an event that was never reached has no time", () => {
  using start = new Event(context);
  using end = new Event(context);
  assert.throws(() => end.since(start), DriverError);
});

Deno.test("finished waits on another thread", async () => {
  using memory = DeviceMemory.allocate(context, 2 ** 20);
  using stream = new Stream(context);
  for (let i = 0; i < 100; i++) memory.fill(i, { stream });
  let resolved = false;
  const finished = stream.finished().then(() => resolved = true);
  assert.equal(resolved, false);
  await finished;
  const seen = new Uint8Array(1);
  memory.read(seen);
  assert.equal(seen[0], 99);
  await Promise.all([stream.finished(), stream.finished()]);
});

Deno.test("a stream that is waited for is destroyed after the wait", async () => {
  using memory = DeviceMemory.allocate(context, 2 ** 24);
  let finished: Promise<void>;
  {
    using stream = new Stream(context);
    for (let i = 0; i < 20; i++) memory.fill(i, { stream });
    finished = stream.finished();
  }
  await finished;
});

Deno.test("a stream with work left is flushed without an error, and one that failed with its own", () => {
  using memory = DeviceMemory.allocate(context, 2 ** 26);
  using stream = new Stream(context);
  for (let n = 0; n < 16; n++) memory.fill(n, { stream });
  stream.flush();
  stream.synchronize();
  stream.flush();
  if (context.driver.kind === "device") return;
  process.env["CUDA_SIM_FAIL"] = "cuStreamQuery:1:999";
  assert.throws(() => stream.flush(), DriverError);
  delete process.env["CUDA_SIM_FAIL"];
});

Deno.test("a stream that was disposed of is not used", async () => {
  const stream = new Stream(context);
  stream[Symbol.dispose]();
  stream[Symbol.dispose]();
  assert.throws(() => stream.synchronize(), /the GPU's Stream was disposed of/);
  await assert.rejects(() => stream.finished(), /the GPU's Stream was disposed of/);
});
