/**
 * The only place that opens the native library. It is opened at the first call that needs it, so that what needs no
 * native code (parsing, passes, help) works before `deno task build`.
 */
import { existsSync } from "node:fs";
import process from "node:process";
import { HcinferError } from "../compiler/errors.ts";
import { libraryPath } from "./build.ts";
import { abi, ABI_VERSION, symbols } from "./symbols.ts";

type Library = Deno.DynamicLibrary<typeof symbols>["symbols"];

let opened: Library | undefined;

/**
 * The functions of ffi/build/libhcinfer.so, or of the library that HCINFER_LIBRARY names. Throws
 * HcinferError("environment") when it is not built or is of another version.
 */
export function library(): Library {
  return opened ??= open(process.env["HCINFER_LIBRARY"] || libraryPath());
}

/** Opens the library at `path`: `library` without its memory of what is open. */
export function open(path: string): Library {
  if (!existsSync(path)) {
    throw new HcinferError(
      "environment",
      `the native library is not built: ${path} does not exist\nrun: deno task build`,
    );
  }
  try {
    // First only its version: another version's library may lack functions, and then fails to load as a whole.
    const probe = Deno.dlopen(path, abi);
    const version = probe.symbols.hc_abi_version();
    probe.close();
    if (version !== ABI_VERSION) {
      throw new HcinferError(
        "environment",
        `${path} is of version ${version}, this program needs ${ABI_VERSION}\nrun: deno task build`,
      );
    }
    return Deno.dlopen(path, symbols).symbols;
  } catch (error) {
    if (error instanceof HcinferError) throw error;
    const cause = error instanceof Error ? error.message : String(error);
    throw new HcinferError(
      "environment",
      `the native library does not load: ${cause}\nrun: deno task build`,
      {
        cause: error,
      },
    );
  }
}
