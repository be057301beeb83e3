/**
 * Files that commands write (-o). A file appears whole or not at all: it is written under a new random name beside its
 * place and renamed. As with a shell's redirection, a link is followed and the permissions of a file that is replaced
 * stay; unlike there, what is no ordinary file is refused.
 */
import { randomBytes } from "node:crypto";
import {
  accessSync,
  closeSync,
  constants,
  fchmodSync,
  lstatSync,
  openSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { resolve } from "node:path";
import { HcinferError } from "../compiler/errors.ts";

/**
 * Writes the file at `path` with the pieces that `write` gives its argument.
 *
 * @throws HcinferError "usage" when something is there that is no ordinary file, "environment" when it cannot be
 * written, and whatever `write` throws. Then nothing has changed.
 */
export async function writeFile(
  path: string,
  write: (append: (bytes: Uint8Array) => void) => void | Promise<void>,
): Promise<void> {
  let partial: string | undefined;
  try {
    const target = targetOf(path);
    const replaced = statSync(target, { throwIfNoEntry: false });
    const name = `${target}.${randomBytes(8).toString("hex")}.tmp`;
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | (constants.O_NOFOLLOW ?? 0);
    const file = openSync(name, flags);
    partial = name;
    try {
      if (replaced !== undefined) fchmodSync(file, replaced.mode & 0o777);
      await write((bytes) => {
        for (let at = 0; at < bytes.length;) at += writeSync(file, bytes, at);
      });
    } finally {
      closeSync(file);
    }
    renameSync(name, target);
    partial = undefined;
  } catch (cause) {
    // What the system refused has a code; what `write` threw of its own has none.
    if (!(cause instanceof Error && "code" in cause)) throw cause;
    throw new HcinferError("environment", `cannot write ${path}: ${cause.message}`, { cause });
  } finally {
    if (partial !== undefined) rmSync(partial, { force: true });
  }
}

/** The path behind links. */
function targetOf(path: string): string {
  const refuse = (what: string): never => {
    throw new HcinferError("usage", `${path} ${what}; nothing was written. Choose another file.`);
  };
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) {
    if (lstatSync(path, { throwIfNoEntry: false }) !== undefined) refuse("is a link to nothing");
    return resolve(path);
  }
  if (!stat.isFile()) refuse(`is ${stat.isDirectory() ? "a folder" : "a pipe or a device"}, not a file`);
  const target = realpathSync(path);
  accessSync(target, constants.W_OK);
  return target;
}
