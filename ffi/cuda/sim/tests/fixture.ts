/** For the simulator's own tests: the kernels of this folder, and what launches them. */
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { buildCuda, outputFolder } from "../../build.ts";
import { Context } from "../../context.ts";
import { Driver, DriverError } from "../../driver.ts";
import { DeviceMemory } from "../../memory.ts";
import { launch, Module } from "../../module.ts";
import { Stream } from "../../stream.ts";

const FOLDER = dirname(fileURLToPath(import.meta.url));
const LIBRARY = join(outputFolder(), "sim_tests/libtests.so");
await buildCuda({ kernels: FOLDER, library: LIBRARY });
const IMAGE = readFileSync(LIBRARY);

export type Argument = bigint | number | { readonly f32: number } | DeviceMemory;

function bytesOf(argument: Argument): Uint8Array<ArrayBuffer> {
  if (argument instanceof DeviceMemory) return new Uint8Array(BigUint64Array.of(argument.address).buffer);
  if (typeof argument === "bigint") return new Uint8Array(BigInt64Array.of(argument).buffer);
  if (typeof argument === "number") return new Uint8Array(Int32Array.of(argument).buffer);
  return new Uint8Array(Float32Array.of(argument.f32).buffer);
}

type Numbers = Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>;
export const bytes = (array: Numbers | BigUint64Array<ArrayBuffer>) => new Uint8Array(array.buffer);

/** A context of the simulator with the tests' kernels and a stream. Disposing of it leaves nothing behind, faults included. */
export class Simulator implements Disposable {
  readonly driver = Driver.open("sim");
  readonly context = Context.retain(this.driver);
  readonly kernels = new Module(this.context, "tests", IMAGE);
  readonly stream = new Stream(this.context);

  alloc(content: Numbers | BigUint64Array<ArrayBuffer> | number): DeviceMemory {
    if (typeof content === "number") return DeviceMemory.allocate(this.context, content);
    const memory = DeviceMemory.allocate(this.context, content.byteLength);
    memory.write(bytes(content));
    return memory;
  }

  floats(memory: DeviceMemory, n = memory.byteLength / 4): Float32Array<ArrayBuffer> {
    const array = new Float32Array(n);
    memory.read(bytes(array));
    return array;
  }

  ints(memory: DeviceMemory, n = memory.byteLength / 4): Int32Array<ArrayBuffer> {
    const array = new Int32Array(n);
    memory.read(bytes(array));
    return array;
  }

  launch(
    name: string,
    shape: { readonly grid?: number; readonly block?: number; readonly shared?: number },
    args: readonly Argument[],
    stream = this.stream,
  ): void {
    const { grid = 1, block = 1, shared = 0 } = shape;
    launch(this.kernels.function(name), { grid: [grid, 1, 1], block, shared }, stream, args.map(bytesOf));
  }

  /** Launches and waits; the status that waiting gave. */
  status(...args: Parameters<Simulator["launch"]>): number {
    this.launch(...args);
    return statusOf(() => this.stream.synchronize());
  }

  [Symbol.dispose](): void {
    this.context.reset();
  }
}

/** CUresult of what the body throws; 0 when it does not. */
export function statusOf(body: () => void): number {
  try {
    body();
    return 0;
  } catch (error) {
    if (!(error instanceof DriverError)) throw error;
    return error.status;
  }
}

/** Sets variables of the environment, which the simulator looks at with every launch. */
export function environment(values: Readonly<Record<string, string>>): Disposable {
  const before = Object.keys(values).map((name) => [name, process.env[name]] as const);
  Object.assign(process.env, values);
  return {
    [Symbol.dispose]() {
      for (const [name, value] of before) {
        if (value === undefined) delete process.env[name];
        else process.env[name] = value;
      }
    },
  };
}

/** The orders that kernels are run in. */
export const SEEDS = [0, -1, 1, 2];
