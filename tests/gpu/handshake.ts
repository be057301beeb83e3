/**
 * How the CPU and a running GPU can tell each other that something is ready: a round trip of each way, over what the same
 * kernels take without. The partner on the CPU is this thread, which spins.
 */
import { HANDSHAKE } from "../../ffi/cuda/kernels/mirror.ts";
import { hostFunction, memoryOperations } from "../../ffi/cuda/alternatives.ts";
import type { Context } from "../../ffi/cuda/context.ts";
import { DeviceMemory, PinnedMemory } from "../../ffi/cuda/memory.ts";
import { Event } from "../../ffi/cuda/stream.ts";
import type { DevicePointer } from "../../ffi/cuda/symbols.ts";
import { awaitNumber, emptyKernelSeconds, handshakeSeconds } from "../../runtime/gpu_machine.ts";
import { Rig } from "../../runtime/gpu_rig.ts";
import { notMeasured, openContext, type Part, type Setting } from "./setting.ts";

/** A delta of a window of Llama-3.1-8B. */
const COPIED_BYTES = 16_384;
const WAYS = [
  ["mapped pinned memory, kernels spin (ours)", handshakeSeconds],
  ["stream memory operations (cuStreamWriteValue64, cuStreamWaitValue64)", streamMemoryOperations],
  ["host function nodes", hostFunctions],
  [`copies of ${COPIED_BYTES / 1024} KiB there and back, and an event`, copiesAndEvents],
] as const;

export const handshake: Part = {
  title: "Handshake: a round trip, over the kernel alone",
  measure({ isSmoke }: Setting) {
    using context = openContext();
    const count = isSmoke ? 4 : 256;
    return WAYS.map(([what, seconds]) => {
      try {
        return { what, found: `${(1e6 * seconds(context, count)).toFixed(2)} us` };
      } catch (error) {
        return { what, found: notMeasured(error) };
      }
    });
  },
};

/** Seconds a round of `run`, over what it takes when it is told to leave the round trips out. The best of some. */
function over(count: number, run: (meets: boolean) => void): number {
  const timed = (meets: boolean) => {
    const started = performance.now();
    run(meets);
    return (performance.now() - started) / 1000 / count;
  };
  const best = (meets: boolean) => Math.min(...Array.from({ length: 5 }, () => timed(meets)));
  return Math.max(0, best(true) - best(false));
}

function streamMemoryOperations(context: Context, count: number): number {
  const { wait, write } = memoryOperations(context.driver);
  using rig = new Rig(context, { arena: 64 });
  using words = PinnedMemory.allocate(context, 16 * count);
  const { buffer, byteOffset } = words.view(0, 16 * count).fill(0);
  const at = (offset: number) => words.deviceAddress + BigInt(offset) as DevicePointer;
  const numbers = new Int32Array(buffer, byteOffset, 4 * count);
  const [kernel] = rig.prepare([{ instruction: HANDSHAKE, tokens: 1 }]);
  let number = 0;
  return over(count, (meets) => {
    rig.begin();
    number++;
    for (let i = 0; i < count; i++) {
      kernel!.launch(rig.stream);
      if (!meets) continue;
      write(rig.stream, at(16 * i), number);
      wait(rig.stream, at(16 * i + 8), number);
    }
    for (let i = 0; meets && i < count; i++) {
      awaitNumber(numbers, 4 * i, number);
      Atomics.store(numbers, 4 * i + 2, number);
    }
    rig.end();
  });
}

function hostFunctions(context: Context, count: number): number {
  const launchHost = hostFunction(context.driver);
  using rig = new Rig(context, { arena: 64 });
  const [kernel] = rig.prepare([{ instruction: HANDSHAKE, tokens: 1 }]);
  using graph = rig.stream.capture(() => {
    for (let i = 0; i < count; i++) {
      kernel!.launch(rig.stream);
      launchHost(rig.stream);
    }
  });
  return rig.seconds(() => graph.launch(rig.stream)) / count - emptyKernelSeconds(context, count);
}

function copiesAndEvents(context: Context, count: number): number {
  using rig = new Rig(context, { arena: 64 });
  using host = PinnedMemory.allocate(context, COPIED_BYTES);
  using device = DeviceMemory.allocate(context, COPIED_BYTES);
  using event = new Event(context);
  const [kernel] = rig.prepare([{ instruction: HANDSHAKE, tokens: 1 }]);
  return over(count, (meets) => {
    rig.begin();
    for (let i = 0; i < count; i++) {
      kernel!.launch(rig.stream);
      if (!meets) continue;
      device.readAsync(rig.stream, host);
      event.record(rig.stream);
      event.synchronize();
      device.writeAsync(rig.stream, host);
    }
    rig.end();
  });
}
