/**
 * Git LFS pointers: what a clone has in place of large files until they are pulled, a text of some hundred bytes
 * (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: it begins so, and has less than 1024 bytes).
 */
import { statSync } from "node:fs";
import { dirname } from "node:path";
import { HcinferError } from "../errors.ts";
import { readRegularText } from "../files.ts";

const BEGINNING = "version https://git-lfs.github.com/spec/";
const MOST_BYTES = 1023;

/** @throws HcinferError("checkpoint") when one of the files that exist is a pointer */
export function refusePointers(files: readonly string[]): void {
  for (const file of files) {
    const found = statSync(file, { throwIfNoEntry: false });
    if (found === undefined || !found.isFile() || found.size > MOST_BYTES) continue;
    if (!readRegularText(file, MOST_BYTES, "checkpoint").startsWith(BEGINNING)) continue;
    throw new HcinferError(
      "checkpoint",
      `${file} is a Git LFS pointer of ${found.size} bytes, not the file itself. Run "git lfs pull" in ` +
        `${dirname(file)} (git lfs must be installed), or download the file`,
    );
  }
}
