/**
 * Where text's files come from: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`. A bundle is such a
 * source and gives only files that its manifest lists, compared with their checksums; a checkpoint is a plain folder.
 */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { HcinferError } from "../compiler/errors.ts";

/** A source of files by name. */
export interface TextFiles {
  /** The folder, for messages. */
  readonly path: string;
  /**
   * The bytes of a file, undefined where there is none.
   * @throws {HcinferError} when it is there but cannot be used
   */
  file(name: string): Uint8Array | undefined;
}

/** More than any model's file takes (Gemma's tokenizer.json has 33 MB); what is larger is not read. */
const MOST_FILE_BYTES = 128 * 2 ** 20;

/** The files that lie in a folder. Links are followed; what is no regular file (a pipe would block) is refused. */
export function folderFiles(path: string): TextFiles {
  return { path, file: (name) => readRegular(join(path, name)) };
}

function readRegular(file: string): Uint8Array | undefined {
  const refuse = (reason: string, cause?: unknown): never => {
    throw new HcinferError("checkpoint", `${file} ${reason}`, { cause });
  };
  try {
    const found = statSync(file, { throwIfNoEntry: false });
    if (found === undefined) return undefined;
    if (!found.isFile()) refuse("is no regular file");
    if (found.size > MOST_FILE_BYTES) refuse(`has ${found.size} bytes, at most ${MOST_FILE_BYTES} are read`);
    return readFileSync(file);
  } catch (cause) {
    if (cause instanceof HcinferError) throw cause;
    return refuse(`cannot be read: ${(cause as Error).message}`, cause);
  }
}
