import assert from "node:assert/strict";
import { NativeMemory } from "../mapping.ts";
import { testDevice } from "./kernels/fixture.ts";
import { DriverError } from "./driver.ts";
import { DeviceMemory, PinnedMemory } from "./memory.ts";
import { Stream } from "./stream.ts";
import { STATUS } from "./symbols.ts";

const { context } = testDevice();
const count = (length: number) => Uint8Array.from({ length }, (_, i) => i);
const read = (memory: DeviceMemory) => {
  const bytes = new Uint8Array(memory.byteLength);
  memory.read(bytes);
  return bytes;
};

Deno.test("what is written is read, at an offset too", () => {
  using memory = DeviceMemory.allocate(context, 100);
  memory.write(count(100));
  memory.write(Uint8Array.of(200, 201), 98);
  const part = new Uint8Array(3);
  memory.read(part, 97);
  assert.deepEqual([...part], [97, 200, 201]);
  assert.equal(memory.at(97), memory.address + 97n);
});

Deno.test("memory is filled at once and in a stream's order", () => {
  using memory = DeviceMemory.allocate(context, 8);
  using stream = new Stream(context);
  memory.fill(7);
  memory.fill(255, { offset: 2, length: 3, stream });
  stream.synchronize();
  assert.deepEqual([...read(memory)], [7, 7, 255, 255, 255, 7, 7, 7]);
});

Deno.test("copies from and to pinned memory, and within the device", () => {
  using pinned = PinnedMemory.allocate(context, 64);
  using first = DeviceMemory.allocate(context, 64);
  using second = DeviceMemory.allocate(context, 64);
  using stream = new Stream(context);
  const bytes = pinned.view(0, 64);
  bytes.set(count(64));
  first.writeAsync(stream, pinned);
  second.fill(0, { stream });
  second.copyAsync(stream, first, { offset: 8, fromOffset: 32, length: 16 });
  second.readAsync(stream, pinned, { offset: 8, hostOffset: 1, length: 16 });
  stream.synchronize();
  assert.deepEqual([...bytes.subarray(0, 18)], [0, ...count(48).subarray(32), 17]);
});

Deno.test("pinned memory is memory of the host, with an address for the device", () => {
  const pinned = PinnedMemory.allocate(context, 4096);
  assert.ok(pinned instanceof NativeMemory && pinned.deviceAddress > 0n);
  assert.ok(NativeMemory.addressOf(pinned) !== null);
  pinned.close();
  pinned.close();
  assert.equal(NativeMemory.addressOf(pinned), null);
  assert.throws(() => pinned.view(0, 1), /the memory is closed/);
});

Deno.test("a lack of memory says how much was asked for and how much is free", () => {
  const asked = context.device.totalMemory + 2 ** 20;
  assert.throws(
    () => DeviceMemory.allocate(context, asked),
    (error) =>
      error instanceof DriverError && error.status === STATUS.outOfMemory && !error.lost &&
      error.message.startsWith("cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY (2): out of memory\n") &&
      error.message.includes(`${(asked / 2 ** 20).toFixed(1)} MiB of the GPU's memory were asked for`) &&
      /the GPU has .* free of .*$/.test(error.message),
  );
  for (const bytes of [0, -1, 0.5, NaN]) {
    assert.throws(() => DeviceMemory.allocate(context, bytes), RangeError);
    assert.throws(() => PinnedMemory.allocate(context, bytes), RangeError);
  }
});

Deno.test("free memory is counted, and memory that is disposed of is free again", () => {
  const before = context.memory();
  assert.equal(before.total, context.device.totalMemory);
  const memory = DeviceMemory.allocate(context, 2 ** 22);
  assert.ok(context.memory().free <= before.free - 2 ** 22);
  memory[Symbol.dispose]();
  memory[Symbol.dispose]();
  assert.equal(context.memory().free, before.free);
});

Deno.test("nothing outside an allocation is copied", () => {
  using memory = DeviceMemory.allocate(context, 10);
  using pinned = PinnedMemory.allocate(context, 10);
  using stream = new Stream(context);
  assert.throws(() => memory.write(count(11)), RangeError);
  assert.throws(() => memory.read(count(2), 9), RangeError);
  assert.throws(() => memory.fill(0, { offset: -1, length: 2 }), RangeError);
  assert.throws(() => memory.writeAsync(stream, pinned, { hostOffset: 5, length: 6 }), RangeError);
  assert.throws(() => memory.copyAsync(stream, memory, { fromOffset: 5, length: 6 }), RangeError);
});

Deno.test("memory that was disposed of is not touched", () => {
  const memory = DeviceMemory.allocate(context, 16), { address } = memory;
  memory[Symbol.dispose]();
  assert.throws(() => memory.write(count(1)), /the GPU's DeviceMemory was disposed of/);
  assert.throws(
    () => context.calls.cuMemFree_v2(address),
    (error) => error instanceof DriverError && error.status === STATUS.invalidValue,
  );
});
