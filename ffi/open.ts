/**
 * The only place that opens native libraries: our own, at the first call that needs it, so that what needs no native code
 * (parsing, passes, help) works before `deno task build`; and those of drivers and of llama.cpp.
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
  return opened ??= openOwn(process.env["HCINFER_LIBRARY"] || libraryPath());
}

/** Our own library at `path`: `library` without its memory of what is open. */
export function openOwn(path: string): Library {
  const build = "\nrun: deno task build";
  if (!existsSync(path)) {
    throw new HcinferError("environment", `the native library is not built: ${path} does not exist${build}`);
  }
  // First only its version: another version's library may lack functions, and then fails to load as a whole.
  const probe = open(path, abi, build);
  const version = probe.symbols.hc_abi_version();
  probe.close();
  if (version !== ABI_VERSION) {
    throw new HcinferError(
      "environment",
      `${path} is of version ${version}, this program needs ${ABI_VERSION}${build}`,
    );
  }
  return open(path, symbols, build).symbols;
}

/**
 * Opens the library at `path` (or of that name, where the system finds it) with the functions of `table`. Whether they
 * are of the version that the table describes is the caller's to check. Throws HcinferError("environment") with the
 * system's reason, and `advice` behind it.
 */
export function open<S extends Deno.ForeignLibraryInterface>(
  path: string,
  table: S,
  advice = "",
): Deno.DynamicLibrary<S> {
  try {
    return Deno.dlopen(path, table);
  } catch (error) {
    const said = error instanceof Error ? error.message : String(error);
    const cause = said.replace(/^(Could not open library: )+/, "");
    throw new HcinferError("environment", `${path} does not load: ${cause}${advice}`, { cause: error });
  }
}
