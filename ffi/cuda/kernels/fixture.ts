/**
 * For tests of kernels: runs one instruction by its launch rule, on the simulator or, with HCINFER_CUDA=device, on a GPU.
 * Every operand has an allocation of its own that is exactly as long as its array, so that the simulator sees what reaches
 * outside.
 */
import { Context } from "../context.ts";
import { Driver, driverKind } from "../driver.ts";
import { Kernels } from "../kernels.ts";
import type { StepShape } from "../launch.ts";
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
  const { context, kernels } = testDevice();
  const n = args.step?.n ?? 1;
  const step = { n, tokens: n, tiles: n, context: n, ...args.step };
  const { capability = context.device.capability } = args;
  const rule = LAUNCHES[op];
  if (rule === undefined) throw new Error(`${op} has no launch rule`);
  const launches = rule(args.integers, step, { ...context.device, capability });

  try {
    using held = new DisposableStack();
    const upload = (bytes: Uint8Array<ArrayBuffer>) => {
      const memory = held.use(DeviceMemory.allocate(context, bytes.length));
      memory.write(bytes);
      return memory;
    };
    const operands = new Map<
      string,
      { readonly bytes: Uint8Array<ArrayBuffer>; readonly memory: DeviceMemory }
    >();
    for (const [name, array] of Object.entries(args.operands)) {
      if (array === undefined || array.length === 0) continue;
      const bytes = bytesOf(array);
      operands.set(name, { bytes, memory: upload(bytes) });
    }
    const unknown = new Set(operands.keys());
    const operand = { segment: "arena", offset: 0 } as const;
    const parameters = packParameters({
      op,
      integers: args.integers,
      reals: args.reals ?? {},
      operands: Object.fromEntries([...operands.keys()].map((name) => [name, operand])),
    }, (_, name) => {
      unknown.delete(name);
      return operands.get(name)!.memory.address;
    });
    if (unknown.size > 0) throw new Error(`${op} has no operand ${[...unknown].join(", ")}`);

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
        host: 0n,
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
    for (const { bytes, memory } of operands.values()) memory.read(bytes);
    const [stopped, lost] = new Uint32Array(words.buffer, 32);
    if (stopped || lost) throw new Error(`${op} gave up: stopped ${stopped}, lost ${lost}`);
    if (launches.length > 0 && (signalled[0] !== Number(STEP) || arrived.some((byte) => byte !== 0))) {
      throw new Error(`${op} did not finish: not every block reached finish()`);
    }
    return words[1] === NO_OVERFLOW ? {} : { overflow: words[1]! };
  } catch (error) {
    // What comes next must not meet this kernel's fault.
    context.reset();
    opened = undefined;
    throw error;
  }
}

const NONE = 0n as DevicePointer;

function bytesOf(array: OperandArray): Uint8Array<ArrayBuffer> {
  if (!(array.buffer instanceof ArrayBuffer)) throw new Error("an operand in shared memory");
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
