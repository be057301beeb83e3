import assert from "node:assert/strict";
import { HcinferError } from "../../compiler/errors.ts";
import { Context } from "./context.ts";
import { Driver, DriverError, driverKind } from "./driver.ts";
import { Kernels } from "./kernels.ts";
import { DeviceMemory } from "./memory.ts";
import { launch, Module, PreparedLaunch } from "./module.ts";
import { type Call, packCall, packParameters } from "./parameters.ts";
import { Stream } from "./stream.ts";
import { type DevicePointer, STATUS } from "./symbols.ts";

const SHAPE = { grid: [1, 1, 1], block: 32 } as const;

/** Two rows of 16 bytes, a kernel that copies the first to the second, and its parameters. */
class Mirror implements Disposable {
  readonly context = Context.retain(Driver.open(driverKind("sim")));
  readonly #owned = new DisposableStack();
  readonly kernels = this.#owned.use(new Kernels(this.context));
  readonly stream = this.#owned.use(new Stream(this.context));
  readonly from = this.#allocate(16);
  readonly to = this.#allocate(16);
  readonly report = this.#allocate(40);

  #allocate(bytes: number): DeviceMemory {
    const memory = this.#owned.use(DeviceMemory.allocate(this.context, bytes));
    memory.fill(0);
    return memory;
  }

  get kernel() {
    return this.kernels.function("mirror", "mirror");
  }

  parameters(to: DevicePointer = this.to.address, n = 1): Uint8Array<ArrayBuffer>[] {
    const at: Readonly<Record<string, DevicePointer>> = { from: this.from.address, to };
    const operand = { segment: "arena", offset: 0 } as const;
    const instruction = { op: "mirror", integers: { rowBytes: 16 }, reals: {} } as const;
    const operands = { from: operand, to: operand };
    const zero = { tokens: n, tiles: 0, chunks: 0, host: 0n, mailbox: 0n, wait: 0n, signal: 0n };
    const call: Call = { n, ...zero, checks: false, report: this.report.address, arrivals: 0n, scratch: 0n };
    return [packParameters({ ...instruction, operands }, (_, name) => at[name]!), packCall(call)];
  }

  read(): number[] {
    const bytes = new Uint8Array(16);
    this.to.read(bytes);
    return [...bytes];
  }

  [Symbol.dispose](): void {
    this.#owned.dispose();
    this.context[Symbol.dispose]();
  }
}

Deno.test("a prepared launch runs again with parameters that were changed", () => {
  using mirror = new Mirror();
  mirror.from.fill(5);
  const prepared = new PreparedLaunch(mirror.kernel, SHAPE, mirror.parameters());
  prepared.launch(mirror.stream);
  mirror.stream.synchronize();
  assert.deepEqual(mirror.read(), Array(16).fill(5));

  // Call.n is 0 now: nothing is copied.
  mirror.from.fill(6);
  prepared.parameters[1]!.fill(0, 0, 4);
  prepared.launch(mirror.stream);
  mirror.stream.synchronize();
  assert.deepEqual(mirror.read(), Array(16).fill(5));
});

Deno.test("a graph keeps the parameters of its launches", () => {
  using mirror = new Mirror();
  const prepared = new PreparedLaunch(mirror.kernel, SHAPE, mirror.parameters());
  using graph = mirror.stream.capture(() => prepared.launch(mirror.stream));
  prepared.parameters[1]!.fill(0, 0, 4);
  mirror.from.fill(8);
  graph.launch(mirror.stream);
  mirror.stream.synchronize();
  assert.deepEqual(mirror.read(), Array(16).fill(8));
});

Deno.test("an image that is none is refused with its name", () => {
  using mirror = new Mirror();
  assert.throws(
    () => new Module(mirror.context, "80/nonsense.ptx", new TextEncoder().encode("no kernels")),
    (error) =>
      error instanceof DriverError && error.call === "cuModuleLoadDataEx" &&
      error.message.includes("while the kernels of 80/nonsense.ptx were loaded"),
  );
});

Deno.test("a kernel that is not there is named", () => {
  using mirror = new Mirror();
  assert.throws(
    () => mirror.kernels.function("mirror", "mirrors"),
    (error) => error instanceof DriverError && /there is no kernel mirrors in /.test(error.message),
  );
});

Deno.test("parameters of other sizes than the kernel's are refused", () => {
  using mirror = new Mirror();
  const [parameters, call] = mirror.parameters();
  const refused = (given: Uint8Array[], message: RegExp) =>
    assert.throws(
      () => launch(mirror.kernel, SHAPE, mirror.stream, given),
      (error) => error instanceof HcinferError && message.test(error.message),
    );
  refused([parameters!], /takes parameters of 24, \d+ bytes, not 24: the kernels are of another version/);
  refused([parameters!.subarray(8), call!], /bytes, not 16, \d+: /);
});

Deno.test("shared memory above 48 KiB is asked for, and no more than the device has", () => {
  using mirror = new Mirror();
  launch(mirror.kernel, { ...SHAPE, shared: 64 * 1024 }, mirror.stream, mirror.parameters());
  mirror.stream.synchronize();
  assert.throws(
    () => launch(mirror.kernel, { ...SHAPE, shared: 2 ** 20 }, mirror.stream, mirror.parameters()),
    (error) => error instanceof HcinferError && /needs 1048576 bytes of shared memory/.test(error.message),
  );
});

Deno.test("a launch that cannot be is an error of the call", () => {
  using mirror = new Mirror();
  assert.throws(
    () => launch(mirror.kernel, { ...SHAPE, block: 4096 }, mirror.stream, mirror.parameters()),
    (error) => error instanceof DriverError && error.status === STATUS.invalidValue && !error.lost,
  );
});

const isFault = (error: unknown) =>
  error instanceof DriverError && error.status === STATUS.illegalAddress && error.lost &&
  error.message.includes("The context is lost");

Deno.test("a kernel that faults loses its context, until it is reset", async () => {
  {
    using mirror = new Mirror();
    launch(mirror.kernel, SHAPE, mirror.stream, mirror.parameters(0n as DevicePointer));
    assert.throws(() => mirror.stream.synchronize(), isFault);
    await assert.rejects(() => mirror.stream.finished(), isFault);
    assert.throws(() => mirror.from.fill(0), isFault);
    mirror.context.reset();
    assert.throws(() => mirror.from.fill(0), /the GPU's context was given up or reset/);
    assert.throws(() => mirror.stream.handle, /the GPU's context was given up or reset/);
    // What is left is disposed of without a word.
  }
  using mirror = new Mirror();
  mirror.from.fill(1);
  launch(mirror.kernel, SHAPE, mirror.stream, mirror.parameters());
  mirror.stream.synchronize();
  assert.deepEqual(mirror.read(), Array(16).fill(1));
});

// A GPU has whole pages for many allocations, and forgives.
const onSimulator = { ignore: driverKind("sim") !== "sim" };

Deno.test(
  "a kernel that writes memory that was freed faults; what the context owned is given up",
  onSimulator,
  () => {
    const mirror = new Mirror();
    const dangling = DeviceMemory.allocate(mirror.context, 16), { address } = dangling;
    dangling[Symbol.dispose]();
    launch(mirror.kernel, SHAPE, mirror.stream, mirror.parameters(address));
    assert.throws(() => mirror.stream.synchronize(), isFault);
    const { context } = mirror;
    const memory = mirror.to;
    memory[Symbol.dispose]();
    context.reset();
    mirror[Symbol.dispose]();
    context.reset();
  },
);
