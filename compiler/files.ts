/**
 * Reading files that somebody else wrote. A path may name anything: a pipe that never ends, a device, a folder, a file
 * larger than the memory. Whoever reads says how much is sane, and gets a whole ordinary file or an error; nothing
 * here waits for another program.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { type ErrorKind, HcinferError } from "./errors.ts";

/** Most bytes of a JSON or text file of a checkpoint: the largest tokenizer.json known has 33 MB. */
export const MOST_TEXT_BYTES = 64 * 2 ** 20;

/**
 * The bytes of the ordinary file at `path` (or of the one its symbolic links lead to).
 *
 * @throws HcinferError of `kind` when there is none, when it is a folder, pipe, socket or device, when it has more than
 * `mostBytes` bytes, or when it shrinks while it is read.
 */
export function readRegularFile(
  path: string,
  mostBytes: number,
  kind: ErrorKind = "input",
): Uint8Array<ArrayBuffer> {
  const refuse = (reason: string, cause?: unknown): never => {
    throw new HcinferError(kind, `cannot read ${path}: ${reason}`, { cause });
  };
  let descriptor: number | undefined;
  try {
    // Without O_NONBLOCK, opening a pipe waits for its writer.
    descriptor = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
    const status = fstatSync(descriptor);
    if (!status.isFile()) {
      refuse(`it is ${status.isDirectory() ? "a folder" : "a pipe or a device"}, not a file`);
    }
    if (status.size > mostBytes) {
      refuse(`it has ${status.size} bytes; at most ${mostBytes} are read`);
    }
    const bytes = new Uint8Array(status.size);
    for (let at = 0; at < bytes.length;) {
      const read = readSync(descriptor, bytes, at, bytes.length - at, at);
      if (read === 0) refuse(`it was cut off at byte ${at} of ${bytes.length} while it was read`);
      at += read;
    }
    return bytes;
  } catch (error) {
    if (error instanceof HcinferError) throw error;
    const missing = error instanceof Error && "code" in error && error.code === "ENOENT";
    return refuse(
      missing ? "there is no such file" : error instanceof Error ? error.message : String(error),
      error,
    );
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

/** `readRegularFile` as UTF-8 text. Bytes that are no UTF-8 become U+FFFD. */
export function readRegularText(
  path: string,
  mostBytes = MOST_TEXT_BYTES,
  kind: ErrorKind = "input",
): string {
  return new TextDecoder().decode(readRegularFile(path, mostBytes, kind));
}
