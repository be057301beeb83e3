import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { HcinferError } from "../../compiler/errors.ts";
import { hasCompiler } from "../build_library.ts";
import { Context, devices } from "./context.ts";
import { Driver, DriverError, driverKind } from "./driver.ts";
import { addresses, STATUS, type StreamHandle, symbols } from "./symbols.ts";

/** A library with the driver's functions, all of which do nothing, but those of `body`, and without `missing`. */
class Stub implements Disposable {
  readonly #folder = mkdtempSync(join(tmpdir(), "hcinfer-driver-"));
  readonly path = join(this.#folder, "libstub.so");

  constructor({ version = 12_000, init = 0, missing = "" }) {
    const source = join(this.#folder, "stub.c");
    const bodies: Readonly<Record<string, string>> = {
      cuInit: `(void) { return ${init}; }`,
      cuDriverGetVersion: `(int* version) { *version = ${version}; return 0; }`,
      cuGetErrorName: `(int status, const char** name) { *name = "CUDA_ERROR_OF_STUB"; return 0; }`,
      cuGetErrorString: `(int status, const char** text) { return 1; }`,
    };
    const lines = Object.keys(symbols).filter((name) => name !== missing).map((name) =>
      `int ${name}${bodies[name] ?? "(void) { return 0; }"}\n`
    );
    writeFileSync(source, lines.join(""));
    execFileSync(process.env["CC"] || "gcc", ["-shared", "-fPIC", "-o", this.path, source]);
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true });
  }
}

const ignore = !(await hasCompiler());
/** A test that compiles a stub. */
const withStub = (name: string, fn: () => void) => Deno.test({ name, ignore, fn });

const environment = (message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof HcinferError);
  assert.equal(error.kind, "environment");
  assert.match(error.message, message);
  return true;
};

Deno.test("without a driver the error says what was looked for", () => {
  assert.throws(
    () => Driver.openFirst("device", ["libnodriver.so.1", "/no/such/libcuda.so"]),
    environment(/^no NVIDIA driver: libnodriver\.so\.1: .*; \/no\/such\/libcuda\.so: [^:]*: [^:]*$/),
  );
});

withStub("an old driver is refused by its version, before what it lacks", () => {
  using old = new Stub({ version: 11_040, missing: "cuGraphInstantiateWithFlags" });
  assert.throws(
    () => Driver.openFirst("device", ["libnodriver.so.1", old.path]),
    environment(/^the NVIDIA driver is too old: .* is of CUDA 11\.4, and 12\.0 or newer is needed\n/),
  );
});

withStub("a driver that lacks a function is refused with its name, an optional one is noted", () => {
  using broken = new Stub({ missing: "cuMemAlloc_v2" });
  assert.throws(
    () => Driver.openFirst("device", [broken.path]),
    environment(/does not load: .*cuMemAlloc_v2/),
  );
  using lesser = new Stub({ missing: "cuFuncGetParamInfo" });
  assert.deepEqual([...Driver.openFirst("device", [lesser.path]).missing], ["cuFuncGetParamInfo"]);
});

withStub("a driver that does not start says why", () => {
  using dead = new Stub({ init: STATUS.noDevice });
  assert.throws(
    () => Driver.openFirst("device", [dead.path]),
    environment(/^cuInit: CUDA_ERROR_OF_STUB \(100\): the driver does not say more$/),
  );
});

withStub("a driver without devices is an error", () => {
  using empty = new Stub({});
  assert.throws(() => devices(Driver.openFirst("device", [empty.path])), environment(/finds no GPU/));
});

Deno.test("a device that is too old is refused with what it has and what is needed", () => {
  const driver = Driver.open("sim"), [device] = devices(driver);
  assert.ok(device !== undefined && device.capability >= 75 && device.multiprocessors > 0);
  assert.throws(
    () => Context.retain(driver, { ...device, name: "GTX 1080", capability: 61 }),
    environment(/^GTX 1080 has compute capability 6\.1; the kernels need 7\.5 or newer/),
  );
});

Deno.test("an error has the call, its status and the driver's words", () => {
  const driver = Driver.open("sim");
  using context = Context.retain(driver);
  assert.throws(
    () => context.calls.cuStreamSynchronize(0x1234n as StreamHandle),
    (error) =>
      error instanceof DriverError && error.call === "cuStreamSynchronize" &&
      error.status === STATUS.invalidHandle && !error.lost &&
      error.message === "cuStreamSynchronize: CUDA_ERROR_INVALID_HANDLE (400): invalid resource handle",
  );
});

Deno.test("a status without a name is told by its number", () => {
  const { message } = Driver.open("sim").error("cuInit", 12345);
  assert.equal(message, "cuInit: an error without a name (12345): the driver does not say more");
});

Deno.test("functions have addresses", () => {
  const driver = Driver.open("sim");
  const values = Object.keys(addresses).map((name) => driver.addresses[name as keyof typeof addresses]);
  assert.ok(values.every((address) => address !== null));
  assert.equal(new Set(values.map((address) => Deno.UnsafePointer.value(address))).size, values.length);
});

Deno.test("HCINFER_CUDA is sim, device or nothing", () => {
  const before = process.env["HCINFER_CUDA"];
  try {
    for (const [set, kind] of [["sim", "sim"], ["device", "device"], ["", "device"]] as const) {
      process.env["HCINFER_CUDA"] = set;
      assert.equal(driverKind(), kind);
    }
    process.env["HCINFER_CUDA"] = "rocm";
    assert.throws(() => driverKind(), /HCINFER_CUDA is rocm; expected sim or device/);
  } finally {
    if (before === undefined) delete process.env["HCINFER_CUDA"];
    else process.env["HCINFER_CUDA"] = before;
  }
});
