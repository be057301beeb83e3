/**
 * For tests of kernels: runs one instruction by its launch rule, on the simulator or, with HCINFER_CUDA=device, on a GPU.
 * Every operand has an allocation of its own that is exactly as long as its array, so that the simulator sees what reaches
 * outside.
 */
import { Context } from "../context.ts";
import { Driver, driverKind } from "../driver.ts";
import { Kernels } from "../kernels.ts";
import type { Launch, StepShape } from "../launch.ts";
import { LAUNCHES } from "../launches.ts";
import { DeviceMemory, PinnedMemory } from "../memory.ts";
import { launch } from "../module.ts";
import { type KernelOp, packCall, packParameters } from "../parameters.ts";
import { Stream } from "../stream.ts";
import type { DevicePointer } from "../symbols.ts";

type OperandArray = Float32Array | Int32Array | Int8Array | Uint8Array | Uint16Array | Int16Array;

export interface InstructionArguments {
  readonly operands: Readonly<Record<string, OperandArray | undefined>>;
  readonly integers: Readonly<Record<string, number>>;
  readonly reals?: Readonly<Record<string, number>>;
  readonly step?: Partial<StepShape>;
  /** Of operands that another lane reads: their twins in pinned memory, as the run leaves them. */
  readonly twins?: Readonly<Record<string, OperandArray>>;
  /** What the launch rule is told. Default: the device's. */
  readonly capability?: number;
}

/** The structures StepReport and Mailbox of call.h, in bytes. */
const REPORT_BYTES = 40, MAILBOX_BYTES = 80;
const STEP = 1n, NO_OVERFLOW = 2n ** 64n - 1n, PATIENCE_NS = 2_000_000_000n;

/** One for all tests of a file: a context costs more than a kernel. */
let opened: { readonly context: Context; readonly kernels: Kernels } | undefined;

/** The device that kernels are tested on. */
export function testDevice(): { readonly context: Context; readonly kernels: Kernels } {
  if (opened === undefined) {
    const context = Context.retain(Driver.open(driverKind("sim")));
    opened = { context, kernels: new Kernels(context) };
  }
  return opened;
}

/**
 * Runs the instruction over `step.n` tokens (default: 1) and writes all operands back into their arrays.
 * @returns `overflow` of the step's report, where the kernel lowered it
 * @throws when the kernel stopped, or did not finish: it must end with `finish` in every thread of every block
 */
export function runInstruction(op: KernelOp, args: InstructionArguments): { readonly overflow?: bigint } {
  const { context } = testDevice();
  const n = args.step?.n ?? 1;
  const step = { n, tokens: n, tiles: n, context: n, ...args.step };
  const { capability = context.device.capability, integers, reals = {} } = args;
  const operand = { segment: "arena", offset: 0 } as const;
  return runLaunches(LAUNCHES[op](integers, step, { ...context.device, capability }), {
    ...args,
    name: op,
    step,
    parameters: (addresses) => {
      const names = [...addresses.keys()];
      const unknown = new Set(names);
      const operands = Object.fromEntries(names.map((name) => [name, operand]));
      const packed = packParameters({ op, integers, reals, operands }, (_, name) => {
        unknown.delete(name);
        return addresses.get(name)!;
      });
      if (unknown.size > 0) throw new Error(`${op} has no operand ${[...unknown].join(", ")}`);
      return packed;
    },
  });
}

export interface LaunchArguments extends Pick<InstructionArguments, "operands" | "twins"> {
  /** In errors. */
  readonly name: string;
  readonly step: StepShape;
  /** The structure that the kernels are given, of where the operands lie. */
  parameters(addresses: ReadonlyMap<string, DevicePointer>): Uint8Array<ArrayBuffer>;
}

/** Runs launches that belong together, as `runInstruction` does those of an instruction. */
export function runLaunches(
  launches: readonly Launch[],
  { name, step, operands: arrays, twins = {}, parameters: pack }: LaunchArguments,
): { readonly overflow?: bigint } {
  const { context, kernels } = testDevice();
  try {
    using held = new DisposableStack();
    const upload = (bytes: Uint8Array<ArrayBuffer>) => {
      const memory = held.use(DeviceMemory.allocate(context, bytes.length));
      memory.write(bytes);
      return memory;
    };
    // Operands with twins lie in one allocation, as one distance leads to all twins.
    const given = Object.entries(arrays).filter((entry): entry is [string, OperandArray] =>
      (entry[1]?.length ?? 0) > 0
    );
    const offsets = new Map<string, number>();
    let paired = 0;
    for (const [name] of given.filter(([name]) => name in twins)) {
      offsets.set(name, paired);
      paired += Math.ceil(arrays[name]!.byteLength / TWIN_ALIGNMENT) * TWIN_ALIGNMENT;
    }
    const arena = paired > 0 ? held.use(DeviceMemory.allocate(context, paired)) : undefined;
    const twin = paired > 0 ? held.use(PinnedMemory.allocate(context, paired)) : undefined;
    const operands = given.map(([name, array]) => {
      const bytes = bytesOf(array), offset = offsets.get(name);
      if (arena === undefined || offset === undefined) {
        return { name, bytes, memory: upload(bytes), offset: 0 };
      }
      arena.write(bytes, offset);
      return { name, bytes, memory: arena, offset };
    });
    const parameters = pack(new Map(operands.map(({ name, memory, offset }) => [name, memory.at(offset)])));
    const host = arena && twin ? twin.deviceAddress - arena.address : 0n;

    const mailbox = held.use(PinnedMemory.allocate(context, MAILBOX_BYTES));
    mailbox.view(0, MAILBOX_BYTES).fill(0);
    const words = new BigUint64Array(REPORT_BYTES / 8);
    words.set([STEP, NO_OVERFLOW, PATIENCE_NS]);
    const reportBytes = new Uint8Array(words.buffer);
    const report = upload(reportBytes);
    // The event waited for was published long ago; the one signalled was never.
    const wait = upload(new Uint8Array(BigUint64Array.of(STEP).buffer));
    const signalled = new Uint8Array(8), arrived = new Uint8Array(4);
    const signal = upload(signalled), arrivals = upload(arrived);
    const scratchBytes = Math.max(0, ...launches.map(({ scratch = 0 }) => scratch));
    const scratch = scratchBytes > 0 ? held.use(DeviceMemory.allocate(context, scratchBytes)).address : NONE;

    const stream = held.use(new Stream(context));
    launches.forEach((shape, i) => {
      const call = packCall({
        n: step.n,
        tokens: step.tokens,
        tiles: step.tiles,
        chunks: shape.chunks ?? 0,
        checks: true,
        host: i === launches.length - 1 ? host : 0n,
        report: report.address,
        mailbox: mailbox.deviceAddress,
        wait: i === 0 ? wait.address : NONE,
        signal: i === launches.length - 1 ? signal.address : NONE,
        arrivals: arrivals.address,
        scratch,
      });
      launch(kernels.function(shape.module, shape.kernel), shape, stream, [parameters, call]);
    });
    stream.synchronize();

    report.read(reportBytes);
    signal.read(signalled);
    arrivals.read(arrived);
    for (const { name, bytes, memory, offset } of operands) {
      memory.read(bytes, offset);
      const other = twins[name];
      if (other && twin) bytesOf(other).set(twin.view(offset, other.byteLength));
    }
    const [stopped, lost] = new Uint32Array(words.buffer, 32);
    if (stopped || lost) throw new Error(`${name} gave up: stopped ${stopped}, lost ${lost}`);
    if (launches.length > 0 && (signalled[0] !== Number(STEP) || arrived.some((byte) => byte !== 0))) {
      throw new Error(`${name} did not finish: not every block reached finish()`);
    }
    return words[1] === NO_OVERFLOW ? {} : { overflow: words[1]! };
  } catch (error) {
    // What comes next must not meet this kernel's fault.
    context.reset();
    opened = undefined;
    throw error;
  }
}

/** Of operands with twins, in bytes. */
const TWIN_ALIGNMENT = 64;
const NONE = 0n as DevicePointer;

function bytesOf(array: OperandArray): Uint8Array<ArrayBuffer> {
  if (!(array.buffer instanceof ArrayBuffer)) throw new Error("an operand in shared memory");
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
