/** What the simulator promises of the driver's functions, beyond what the binding's own tests ask for. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { hasCompiler } from "../../build_library.ts";
import { PinnedMemory } from "../memory.ts";
import { nvcc, nvccVersion } from "../ptx.ts";
import { Event, Stream } from "../stream.ts";
import { type DevicePointer, type HostPointer, STATUS } from "../symbols.ts";
import { bytes, environment, SEEDS, Simulator, statusOf } from "./tests/fixture.ts";

const { invalidValue, outOfMemory } = STATUS;

Deno.test("the side of a copy that is the host's cannot be the device's, nor the other way round", () => {
  using simulator = new Simulator();
  const { context: { calls }, stream } = simulator;
  const device = simulator.alloc(64), pinned = PinnedMemory.allocate(simulator.context, 64);
  const asHost = device.address as bigint as HostPointer, asDevice = pinned.deviceAddress;
  assert.equal(
    statusOf(() => calls.cuMemcpyDtoHAsync_v2(asHost, device.address, 64n, stream.handle)),
    invalidValue,
  );
  assert.equal(
    statusOf(() => calls.cuMemcpyHtoDAsync_v2(device.address, asHost, 64n, stream.handle)),
    invalidValue,
  );
  assert.equal(statusOf(() => calls.cuMemcpyHtoD_v2(asDevice, new Uint8Array(64), 64n)), invalidValue);
  const past = device.address + 60n as DevicePointer;
  assert.equal(statusOf(() => calls.cuMemcpyHtoD_v2(past, new Uint8Array(64), 8n)), invalidValue);
  assert.equal(
    statusOf(() => calls.cuMemcpyDtoDAsync_v2(past, device.address, 8n, stream.handle)),
    invalidValue,
  );
});

Deno.test("CUDA_SIM_MEMORY limits the device's memory", () => {
  using _ = environment({ CUDA_SIM_MEMORY: "10000" });
  using simulator = new Simulator();
  const { calls } = simulator.context;
  const out = new Uint8Array(8);
  simulator.alloc(6000);
  assert.deepEqual(simulator.context.memory(), { free: 4000, total: 10000 });
  assert.equal(statusOf(() => calls.cuMemAlloc_v2(out, 4001n)), outOfMemory);
  assert.equal(statusOf(() => calls.cuMemAlloc_v2(out, 4000n)), 0);
  assert.equal(statusOf(() => calls.cuMemHostAlloc(out, 100000n, 0)), 0, "pinned memory is the host's");
});

Deno.test("CUDA_SIM_FAIL: the nth call fails, once", () => {
  using simulator = new Simulator();
  const { calls } = simulator.context, out = new Uint8Array(8);
  const allocate = () => statusOf(() => calls.cuMemAlloc_v2(out, 16n));
  {
    using _ = environment({ CUDA_SIM_FAIL: "cuMemAlloc_v2:2" });
    assert.deepEqual([allocate(), allocate(), allocate()], [0, outOfMemory, 0]);
  }
  {
    using _ = environment({ CUDA_SIM_FAIL: "cuStreamSynchronize:1" });
    assert.equal(allocate(), 0);
    assert.equal(statusOf(() => simulator.stream.synchronize()), 999);
    assert.equal(statusOf(() => simulator.stream.synchronize()), 0);
  }
  using _ = environment({ CUDA_SIM_FAIL: "cuMemAlloc_v2:1:700" });
  assert.equal(allocate(), 700);
  assert.equal(allocate(), 0, "what was asked for is no fault of a kernel");
});

for (const seed of SEEDS) {
  Deno.test(`events order two streams, and nothing else does, seed ${seed}`, () => {
    using _ = environment({ CUDA_SIM_SEED: String(seed) });
    using simulator = new Simulator();
    const other = new Stream(simulator.context), event = new Event(simulator.context);
    const n = 1024, values = simulator.alloc(new Float32Array(n)), copy = simulator.alloc(4 * n);
    for (let turn = 1; turn <= 20; turn++) {
      simulator.launch("add_one", { grid: 4, block: 256 }, [values, n]);
      event.record(simulator.stream);
      other.wait(event);
      simulator.launch("copy", { grid: 4, block: 256 }, [values, copy, n], other);
      other.synchronize();
      assert.ok(simulator.floats(copy).every((value) => value === turn));
    }
  });

  Deno.test(`a graph of two streams, with copies and a fill, seed ${seed}`, () => {
    using _ = environment({ CUDA_SIM_SEED: String(seed) });
    using simulator = new Simulator();
    const { context, stream } = simulator;
    const other = new Stream(context), fork = new Event(context), join = new Event(context);
    const n = 64,
      input = PinnedMemory.allocate(context, 4 * n),
      output = PinnedMemory.allocate(context, 4 * n);
    const floats = (memory: PinnedMemory) =>
      new Float32Array(memory.view(0, 4 * n).buffer, memory.view(0, 4 * n).byteOffset, n);
    const left = simulator.alloc(4 * n), right = simulator.alloc(4 * n), sum = simulator.alloc(4);
    // left = input + 1 on one stream while right = 0 + 1 on the other; then the sum of right goes into left[0].
    const graph = stream.capture(() => {
      left.writeAsync(stream, input);
      fork.record(stream);
      other.wait(fork);
      right.fill(0, { stream: other });
      simulator.launch("add_one", { grid: 1, block: n }, [right, n], other);
      simulator.launch("block_sum", { block: n, shared: 4 * n }, [right, sum], other);
      simulator.launch("add_one", { grid: 1, block: n }, [left, n]);
      join.record(other);
      stream.wait(join);
      simulator.launch("copy", { block: 1 }, [sum, left, 1]);
      left.readAsync(stream, output);
    });
    assert.ok(floats(output).every(Number.isNaN), "a capture runs nothing");
    for (const base of [0, 100]) {
      floats(input).fill(base);
      graph.launch(stream);
      stream.synchronize();
      assert.deepEqual([...floats(output)], [n, ...Array(n - 1).fill(base + 1)]);
    }
  });
}

Deno.test("a capture with work on another stream that was not joined is refused", () => {
  using simulator = new Simulator();
  const { context, stream } = simulator;
  const other = new Stream(context), fork = new Event(context), values = simulator.alloc(new Float32Array(1));
  const capture = () =>
    stream.capture(() => {
      simulator.launch("add_one", {}, [values, 1]);
      fork.record(stream);
      other.wait(fork);
      simulator.launch("add_one", {}, [values, 1], other);
    });
  assert.equal(statusOf(capture), 904);
  assert.equal(statusOf(() => stream.synchronize()), 0, "the stream is of use again");
  assert.equal(simulator.floats(values)[0], 0);
});

Deno.test("events tell the time between them", () => {
  using simulator = new Simulator();
  const [first, last] = [new Event(simulator.context), new Event(simulator.context)];
  first.record(simulator.stream);
  simulator.launch("add_one", { grid: 4096, block: 256 }, [
    simulator.alloc(new Float32Array(2 ** 20)),
    2 ** 20,
  ]);
  last.record(simulator.stream);
  last.synchronize();
  const ms = last.since(first);
  assert.ok(ms > 0 && ms < 60_000);
});

Deno.test("a graph's kernels and a thread of the host answer each other through pinned memory", async () => {
  using simulator = new Simulator();
  const { context, stream } = simulator, n = 64, turns = 50;
  const flags = PinnedMemory.allocate(context, 64), mail = PinnedMemory.allocate(context, 4 * n);
  flags.view(0, 64).fill(0);
  const data = simulator.alloc(new Float32Array(n));
  const graph = stream.capture(() =>
    simulator.launch("ask_host", { block: 64 }, [flags.deviceAddress, mail.deviceAddress, data, n])
  );
  const worker = new Worker(new URL("./tests/partner.ts", import.meta.url), { type: "module" });
  const done = new Promise((resolve) => worker.onmessage = resolve);
  worker.postMessage({ flags: flags.deviceAddress, mail: mail.deviceAddress, n, turns });
  for (let turn = 0; turn < turns; turn++) graph.launch(stream);
  await done;
  worker.terminate();
  stream.synchronize();
  assert.ok(simulator.floats(data).every((value) => value === turns * (turns + 1) / 2));
});

Deno.test("a context that was reset has nothing left", () => {
  const simulator = new Simulator();
  const { driver: { calls } } = simulator,
    values = simulator.alloc(16),
    { address } = values,
    { handle } = simulator.stream;
  simulator.context.reset();
  assert.equal(statusOf(() => calls.cuStreamSynchronize(handle)), 709);
  using next = new Simulator();
  assert.equal(statusOf(() => calls.cuStreamSynchronize(handle)), STATUS.invalidHandle);
  assert.equal(statusOf(() => calls.cuMemcpyDtoH_v2(bytes(new Float32Array(4)), address, 16n)), invalidValue);
  assert.equal(next.context.memory().free, next.context.memory().total);
});

Deno.test({
  name: "the functions' prototypes are those of NVIDIA's header",
  ignore: await nvccVersion() === undefined || !(await hasCompiler()),
  async fn() {
    for (const source of ["device", "graph", "memory", "module", "stream"]) {
      const path = fileURLToPath(new URL(`./${source}.cpp`, import.meta.url));
      await nvcc(["-std=c++20", "-DCUDA_SIM_CHECK_ABI", "-c", "-o", "/dev/null", path]);
    }
  },
});
