/**
 * NVIDIA's driver library, opened: `calls` has its functions by name, each of which throws where the driver answers with
 * an error. Objects with owners stand on top of it (context.ts and the files that it names).
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import process from "node:process";
import { HcinferError } from "../../compiler/errors.ts";
import { open } from "../open.ts";
import { addresses, type Arguments, type CallName, STATUS, STICKY, symbols } from "./symbols.ts";

/** The oldest driver that compiles our kernels' PTX: 1000 * major + 10 * minor of the CUDA version. */
const LEAST_VERSION = 12_000;
/** Where the build puts what stands in for a GPU; HCINFER_SIMULATOR names the folder of another build of it. */
const BUILD = process.env["HCINFER_SIMULATOR"] || fileURLToPath(new URL("../build/cuda", import.meta.url));
const SIMULATOR = join(BUILD, "libcuda_sim.so");
/** The kernels, compiled for the simulator. */
export const SIMULATOR_KERNELS = join(BUILD, "libkernels.so");

const LIBRARIES = process.platform === "win32"
  ? ["nvcuda.dll"]
  : ["libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1"];

/** `device`: a GPU. `sim`: the simulator, which runs the same kernels on the CPU. */
export type DriverKind = "device" | "sim";

/** What HCINFER_CUDA says. Throws HcinferError("usage") for anything but `sim`, `device` or nothing. */
export function driverKind(otherwise: DriverKind = "device"): DriverKind {
  const chosen = process.env["HCINFER_CUDA"];
  if (!chosen) return otherwise;
  if (chosen === "sim" || chosen === "device") return chosen;
  throw new HcinferError("usage", `HCINFER_CUDA is ${chosen}; expected sim or device, or nothing`);
}

/** An error that the driver answered with. */
export class DriverError extends HcinferError {
  /** The context is lost: every later call in it fails, until it is reset. */
  readonly lost: boolean;

  constructor(
    /** The function of the driver. */
    readonly call: CallName,
    /** CUresult. */
    readonly status: number,
    message: string,
    options?: ErrorOptions,
  ) {
    super("environment", message, options);
    this.lost = STICKY.has(status);
  }
}

export type Calls = { readonly [N in CallName]: (...args: Arguments<N>) => void };

export class Driver {
  readonly calls: Calls;
  /** Optional functions that this driver lacks. */
  readonly missing: ReadonlySet<CallName>;
  /** Addresses of functions, for native code. */
  readonly addresses: Readonly<Record<keyof typeof addresses, Deno.PointerValue>>;
  readonly #describe: (status: number) => string;

  private constructor(
    readonly kind: DriverKind,
    readonly library: string,
    /** The newest CUDA version that the driver knows: 1000 * major + 10 * minor. */
    readonly version: number,
  ) {
    const advice = kind === "sim" ? "\nrun: deno task build:cuda" : "";
    const { symbols: opened } = open(library, { ...symbols, ...addresses }, advice);
    this.addresses = { setCurrent: opened.setCurrent, synchronize: opened.synchronize };
    const text = (lookUp: (status: number, out: Uint8Array<ArrayBuffer>) => number, status: number) => {
      const out = word();
      const address = lookUp(status, out.bytes) === 0 ? Deno.UnsafePointer.create(out.words[0]!) : null;
      return address === null ? undefined : new Deno.UnsafePointerView(address).getCString();
    };
    this.#describe = (status) => {
      const name = text(opened.cuGetErrorName, status) ?? "an error without a name";
      return `${name} (${status}): ${
        text(opened.cuGetErrorString, status) ?? "the driver does not say more"
      }`;
    };
    type Raw<Result> = (...args: (number | bigint | Uint8Array<ArrayBuffer> | Deno.PointerValue)[]) => Result;
    const functions = opened as Readonly<Record<string, unknown>>;
    const missing = new Set<CallName>();
    const calls = {} as Record<CallName, Raw<void>>;
    for (const name of Object.keys(symbols) as CallName[]) {
      const call = functions[name] as Raw<number> | null;
      if (call === null) {
        missing.add(name);
        continue;
      }
      calls[name] = (...args) => {
        const status = call(...args);
        // That a stream has work left is what a query is for.
        if (status !== 0 && !(name === "cuStreamQuery" && status === STATUS.notReady)) {
          throw this.error(name, status);
        }
      };
    }
    this.calls = calls;
    this.missing = missing;
    this.calls.cuInit(0);
  }

  /**
   * Opens the driver and initialises it.
   * @throws {HcinferError} "environment" where there is none, or it is too old
   */
  static open(kind: DriverKind = driverKind()): Driver {
    if (kind === "sim") {
      if (!existsSync(SIMULATOR)) {
        throw new HcinferError(
          "environment",
          `the GPU simulator is not built: ${SIMULATOR} does not exist\nrun: deno task build:cuda`,
        );
      }
      return Driver.openFirst("sim", [SIMULATOR]);
    }
    return Driver.openFirst("device", LIBRARIES);
  }

  /** The first of `libraries` that loads. */
  static openFirst(kind: DriverKind, libraries: readonly string[]): Driver {
    const failures: string[] = [];
    for (const library of libraries) {
      let version;
      try {
        version = versionOf(library);
      } catch (error) {
        if (!(error instanceof HcinferError)) throw error;
        // What the system said of the library is enough; Deno's words before it are not needed.
        failures.push(error.message.replace(/^.* does not load: /s, ""));
        continue;
      }
      if (version < LEAST_VERSION) {
        throw new HcinferError(
          "environment",
          `the NVIDIA driver is too old: ${library} is of CUDA ${cudaVersion(version)}, and ${
            cudaVersion(LEAST_VERSION)
          } or newer is needed\nupdate NVIDIA's driver`,
        );
      }
      return new Driver(kind, library, version);
    }
    throw new HcinferError("environment", `no NVIDIA driver: ${failures.join("; ")}`);
  }

  /** What a call's status means. `detail` is added to the message. */
  error(call: CallName, status: number, detail = ""): DriverError {
    const lost = STICKY.has(status)
      ? "\nThe context is lost: what was in the device's memory is gone; start again"
      : "";
    return new DriverError(call, status, `${call}: ${this.#describe(status)}${detail}${lost}`);
  }
}

/**
 * Asked first, alone: an older driver may lack functions of the table, and then fails to load as a whole. The library stays
 * open, as it is opened next: thread-local memory of what is closed is lost to the process (glibc's static block).
 */
function versionOf(library: string): number {
  const { cuDriverGetVersion } = symbols;
  const probe = open(library, { cuDriverGetVersion });
  const version = new Int32Array(new ArrayBuffer(4));
  probe.symbols.cuDriverGetVersion(new Uint8Array(version.buffer));
  return version[0]!;
}

/** `12.4` of 12040. */
export function cudaVersion(version: number): string {
  return `${Math.floor(version / 1000)}.${Math.floor(version % 1000 / 10)}`;
}

/** Room for `count` handles or addresses that a call writes, and how it is passed. */
export function word(count = 1): {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly words: BigUint64Array<ArrayBuffer>;
} {
  const words = new BigUint64Array(new ArrayBuffer(8 * count));
  return { words, bytes: new Uint8Array(words.buffer) };
}

/** What a call writes through its first argument, as a handle. */
export function handle<H extends bigint>(write: (out: Uint8Array<ArrayBuffer>) => void): H {
  const out = word();
  write(out.bytes);
  return out.words[0]! as H;
}
