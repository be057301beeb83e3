/** Measures what the cost model (compiler/cost.ts) asks of a GPU, with the kernels that steps use. */
import { HANDSHAKE } from "../ffi/cuda/kernels/mirror.ts";
import { performance } from "node:perf_hooks";
import type { GpuProfile } from "../compiler/profile.ts";
import type { WeightFormat } from "../compiler/weights/format.ts";
import { Context } from "../ffi/cuda/context.ts";
import { Driver, DriverError } from "../ffi/cuda/driver.ts";
import { DeviceMemory, PinnedMemory } from "../ffi/cuda/memory.ts";
import { Event, Stream } from "../ffi/cuda/stream.ts";
import { gpuProblem } from "./gpu_problem.ts";
import { linearStep, Rig, type RigStep } from "./gpu_rig.ts";

const Q8: WeightFormat = { kind: "q8", group: 64 };
const BF16: WeightFormat = { kind: "bf16" };
const MIB = 2 ** 20;

/** Sizes to measure with: large ones for a GPU, tiny ones for the simulator, whose times mean nothing. */
interface Sizes {
  readonly copyBytes: number;
  readonly rows: number;
  readonly inputs: number;
  readonly promptTokens: number;
  readonly kernels: number;
}
const REAL: Sizes = { copyBytes: 1024 * MIB, rows: 2048, inputs: 4096, promptTokens: 2048, kernels: 512 };
const SIMULATED: Sizes = { copyBytes: MIB, rows: 32, inputs: 64, promptTokens: 16, kernels: 4 };

const sizesOf = (context: Context) => context.driver.kind === "sim" ? SIMULATED : REAL;

/** The first GPU, measured; undefined where there is none. @throws {HcinferError} "environment" for one that is too old */
export function measureFirstGpu(
  onProgress?: (done: number, total: number, what: string) => void,
): GpuProfile | undefined {
  using context = firstGpu();
  return context && measureGpu(context, onProgress);
}

/** The first GPU as its driver describes it; undefined where there is none. */
export function describeFirstGpu(): GpuProfile | undefined {
  using context = firstGpu();
  return context && describeGpu(context);
}

function firstGpu(): Context | undefined {
  return gpuProblem() === undefined
    ? Context.retain(Driver.open(), undefined, { schedule: "spin" })
    : undefined;
}

/** Numbers of cuda.h: kHz, kHz and bits. */
const CLOCK_RATE = 13, MEMORY_CLOCK_RATE = 36, MEMORY_BUS_WIDTH = 37;

/** Multiply-adds a clock of one multiprocessor, by the least compute capability that has them; NVIDIA's tuning guides. */
const RATES = [
  { capability: 90, fp32: 128, int8: 256, tensorInt8: 2048, tensorHalf: 1024 },
  { capability: 86, fp32: 128, int8: 256, tensorInt8: 512, tensorHalf: 256 },
  { capability: 80, fp32: 64, int8: 256, tensorInt8: 1024, tensorHalf: 512 },
  { capability: 75, fp32: 64, int8: 256, tensorInt8: 512, tensorHalf: 256 },
] as const;

/** What the driver says of a GPU, as a profile that was not measured: enough to place a model on it. */
export function describeGpu({ calls, device }: Context): GpuProfile {
  const attribute = (number: number, otherwise: number): number => {
    const out = new Int32Array(1);
    try {
      calls.cuDeviceGetAttribute(new Uint8Array(out.buffer), number, device.ordinal);
    } catch (error) {
      if (!(error instanceof DriverError)) throw error;
    }
    return out[0] || otherwise;
  };
  const clocks = attribute(CLOCK_RATE, 1e6) * 1e3 * device.multiprocessors / 1e9;
  const rate = RATES.find(({ capability }) => capability <= device.capability) ?? RATES.at(-1)!;
  return {
    name: device.name,
    memory: device.totalMemory,
    readBandwidth: 2 * attribute(MEMORY_CLOCK_RATE, 1e6) * 1e3 * attribute(MEMORY_BUS_WIDTH, 128) / 8 / 1e9,
    int8Rate: rate.int8 * clocks,
    fp32Rate: rate.fp32 * clocks,
    tensorInt8Rate: rate.tensorInt8 * clocks,
    tensorHalfRate: rate.tensorHalf * clocks,
    linkBandwidth: 13,
    instructionOverhead: 1.5,
    linkLatency: 2,
  };
}

/** The GPU as a profile. Takes some seconds. @param onProgress measurements done, of how many, and what is next */
export function measureGpu(
  context: Context,
  onProgress: (done: number, total: number, what: string) => void = () => {},
): GpuProfile {
  const { rows, inputs, promptTokens, kernels } = sizesOf(context);
  const measurements = {
    readBandwidth: ["the GPU's memory", () => copyBandwidth(context) / 1e9],
    int8Rate: ["its int8 arithmetic", () => linearRate(context, Q8, rows, inputs, 8)],
    fp32Rate: ["its fp32 arithmetic", () => linearRate(context, BF16, rows, inputs, 8)],
    tensorInt8Rate: ["its int8 tensor cores", () => linearRate(context, Q8, rows, inputs, promptTokens)],
    tensorHalfRate: ["its 16-bit tensor cores", () => linearRate(context, BF16, rows, inputs, promptTokens)],
    linkBandwidth: ["the link to it", () => linkBandwidth(context) / 1e9],
    instructionOverhead: ["starting its kernels", () => 1e6 * emptyKernelSeconds(context, kernels)],
    linkLatency: ["meeting it", () => 1e6 * handshakeSeconds(context, kernels) / 2],
  } as const;
  const names = Object.keys(measurements) as (keyof typeof measurements)[];
  const measured = names.map((name, i) => {
    const [what, measure] = measurements[name];
    onProgress(i, names.length, what);
    return [name, Number(Math.max(1e-3, measure()).toPrecision(3))] as const;
  });
  onProgress(names.length, names.length, "");
  const { name, totalMemory } = context.device;
  type Rates = Record<keyof typeof measurements, number>;
  return { name, memory: totalMemory, ...Object.fromEntries(measured) as Rates };
}

/** Bytes per second of a copy within the device's memory, bytes read and bytes written both counted. */
export function copyBandwidth(context: Context, bytes = sizesOf(context).copyBytes): number {
  using from = DeviceMemory.allocate(context, bytes);
  using to = DeviceMemory.allocate(context, bytes);
  using stream = new Stream(context);
  from.fill(1);
  return 2 * bytes / bestSeconds(context, stream, () => to.copyAsync(stream, from));
}

/** Bytes per second from pinned memory of the host to the device. */
export function linkBandwidth(context: Context, bytes = sizesOf(context).copyBytes / 4): number {
  using from = PinnedMemory.allocate(context, bytes);
  using to = DeviceMemory.allocate(context, bytes);
  using stream = new Stream(context);
  return bytes / bestSeconds(context, stream, () => to.writeAsync(stream, from));
}

function bestSeconds(context: Context, stream: Stream, work: () => void): number {
  using first = new Event(context), last = new Event(context);
  let best = Infinity;
  for (let repeat = 0; repeat < 5; repeat++) {
    first.record(stream);
    work();
    last.record(stream);
    last.synchronize();
    best = Math.min(best, last.since(first) / 1000);
  }
  // The simulator's clock may see no time pass.
  return Math.max(best, 1e-9);
}

/** Billions of multiply-adds per second of a linear. */
function linearRate(
  context: Context,
  format: WeightFormat,
  rows: number,
  inputs: number,
  tokens: number,
): number {
  const step = linearStep(format, rows, inputs, tokens);
  using rig = new Rig(context, { arena: step.bytes });
  const graph = rig.record([step]);
  return rows * inputs * tokens / rig.seconds(() => graph.launch(rig.stream)) / 1e9;
}

/** Seconds of a kernel that does nothing, in a graph of `count`. */
export function emptyKernelSeconds(context: Context, count: number): number {
  using rig = new Rig(context, { arena: 64 });
  const graph = rig.record(Array.from({ length: count }, () => ({ instruction: HANDSHAKE, tokens: 1 })));
  return rig.seconds(() => graph.launch(rig.stream)) / count;
}

/**
 * Seconds that a kernel takes longer when what it waits for is written by the CPU once it has seen the kernel before it: a
 * round trip of the handshake, through mapped pinned memory.
 */
export function handshakeSeconds(context: Context, count: number): number {
  using rig = new Rig(context, { arena: 64, events: 2 * count });
  const steps = Array.from({ length: count }, (_, i): RigStep => {
    return { instruction: HANDSHAKE, tokens: 1, wait: 2 * i, signal: 2 * i + 1 };
  });
  const graph = rig.record(steps);
  const run = (answers: boolean) => {
    const number = rig.begin();
    if (!answers) { for (let i = 0; i < count; i++) rig.mailbox[Rig.eventIndex(2 * i)] = number; }
    const started = performance.now();
    graph.launch(rig.stream);
    for (let i = 0; answers && i < count; i++) {
      Atomics.store(rig.mailbox, Rig.eventIndex(2 * i), number);
      awaitNumber(rig.mailbox, Rig.eventIndex(2 * i + 1), number);
    }
    rig.end();
    return (performance.now() - started) / 1000 / count;
  };
  const best = (answers: boolean) => Math.min(...Array.from({ length: 5 }, () => run(answers)));
  return Math.max(0, best(true) - best(false));
}

const PATIENCE_MS = 5000;

/** Spins until `mailbox[index]` is `number`. */
export function awaitNumber(mailbox: Int32Array, index: number, number: number): void {
  const started = performance.now();
  for (let spins = 0; Atomics.load(mailbox, index) !== number; spins++) {
    if (spins % 4096 === 4095 && performance.now() - started > PATIENCE_MS) {
      throw new Error("the GPU did not answer within 5 seconds");
    }
  }
}
