/** What streams have the CPU do in their order: copies, and waits for an event. */
import assert from "node:assert/strict";
import { EventWait } from "./event_wait.ts";
import { HostCopy } from "./host_copy.ts";
import { testDevice } from "./kernels/fixture.ts";
import { DeviceMemory, PinnedMemory } from "./memory.ts";
import { Stream } from "./stream.ts";

Deno.test("parts are copied in the stream's order, whatever their sizes, again and again", () => {
  const { context } = testDevice();
  const sizes = [0, 1, 77, 4096, 9 << 20];
  const all = sizes.reduce((sum, size) => sum + size + 64, 0);
  using pinned = PinnedMemory.allocate(context, all);
  using device = DeviceMemory.allocate(context, all);
  using stream = new Stream(context);
  let offset = 0;
  const parts = sizes.map((size, n) => {
    const part = { to: pinned, offset, from: new Uint8Array(size).fill(n + 1) };
    offset += size + 64;
    return part;
  });
  const copy = new HostCopy(parts);
  for (const round of [0, 10]) {
    parts.forEach(({ from }, n) => from.fill(n + 1 + round));
    pinned.view(0, all).fill(0);
    copy.order(stream);
    device.writeAsync(stream, pinned);
    stream.synchronize();
    const found = new Uint8Array(all);
    device.read(found);
    parts.forEach(({ offset, from }, n) => {
      assert.ok(
        found.subarray(offset, offset + from.length).every((byte) => byte === n + 1 + round),
        `part ${n}`,
      );
      assert.ok(found.subarray(offset + from.length, offset + from.length + 64).every((byte) => byte === 0));
    });
  }
  assert.throws(() => new HostCopy([{ to: pinned, offset: all - 1, from: new Uint8Array(2) }]), RangeError);
});

Deno.test("a stream waits for an event's number, or for the flag that ends a step", async () => {
  const { context } = testDevice();
  using memory = PinnedMemory.allocate(context, 192);
  const { buffer, byteOffset } = memory.view(0, 192).fill(0);
  const words = new BigUint64Array(buffer, byteOffset, 24),
    flag = new Int32Array(buffer, byteOffset + 128, 1);
  const place = (offset: number) => ({ memory, offset });
  const wait = new EventWait(place(0), place(64), place(128));
  using stream = new Stream(context);
  const ended = async (end: () => void) => {
    let isOver = false;
    wait.order(stream);
    const finished = stream.finished().then(() => isOver = true);
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(isOver, false);
    end();
    await finished;
  };
  words[0] = 6n;
  words[8] = 7n;
  await ended(() => Atomics.store(words, 0, 7n));
  words[8] = 8n;
  await ended(() => Atomics.store(flag, 0, 1));
});
