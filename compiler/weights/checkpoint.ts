/**
 * A checkpoint: a trained model as it is published, whatever the files it comes in. Each kind of file is a
 * CheckpointFormat in a file of its own; what is at a path decides which one opens it.
 */
import { readdirSync, statSync } from "node:fs";
import { extname } from "node:path";
import { HcinferError } from "../errors.ts";
import type { Config, TokenEnds } from "./config.ts";
import { HUGGING_FACE } from "./huggingface.ts";

/** A tensor as the checkpoint stores it, row-major. */
export interface StoredTensor {
  /** The format's own name, `BF16`, `I64`; whether it can be a weight says source.ts. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Valid until the checkpoint is closed. */
  readonly bytes: Uint8Array;
}

/** A file of the tokenizer, as a bundle stores it: Hugging Face's tokenizer.json and what belongs to it. */
export interface TokenizerFile {
  readonly name: string;
  /** Its content; a checkpoint whose tokenizer is no file makes it here. */
  read(): Uint8Array;
}

export interface Checkpoint extends Disposable {
  /** Where it is, for messages. */
  readonly path: string;
  /** What stands for the model in tables. */
  readonly name: string;
  /** Geometry, with the names of Hugging Face's config.json whatever the file calls them. */
  readonly config: Config;
  readonly ends: TokenEnds;
  /** Names of all tensors, in the order of the files. */
  readonly tensorNames: readonly string[];
  tensor(name: string): StoredTensor | undefined;
  readonly tokenizer: readonly TokenizerFile[];
  /** Files that the tensors lie in: a bundle records their names and checksums. */
  readonly weightFiles: readonly string[];
  /** Every file it is read from: a bundle is for nobody who may not read all of them. */
  readonly files: readonly string[];
}

/** A kind of checkpoint that can be opened. */
export interface CheckpointFormat {
  /** What it looks like, for the message that lists everything that is accepted. */
  readonly accepted: string;
  /** Whether what exists at `path` claims to be one. */
  isAt(path: string): boolean;
  /** Opens it; throws HcinferError("checkpoint") when it does not hold together. */
  open(path: string): Checkpoint;
}

const FORMATS: readonly CheckpointFormat[] = [HUGGING_FACE];

/**
 * Opens the checkpoint at `path`. Throws HcinferError("checkpoint") when there is none, or when it does not hold
 * together. Whether its tensors are those of a model is asked with `checkModel`.
 */
export function openCheckpoint(path: string): Checkpoint {
  const stat = statSync(path, { throwIfNoEntry: false });
  const format = stat && FORMATS.find((f) => f.isAt(path));
  if (format !== undefined) return format.open(path);
  const accepted = `A model is ${FORMATS.map((f) => f.accepted).join(",\nor ")}.`;
  throw new HcinferError("checkpoint", `${path} ${whatIsWrong(path, stat?.isDirectory())}\n${accepted}`);
}

/** What there is instead of a checkpoint; `isFolder` is undefined for nothing. */
function whatIsWrong(path: string, isFolder: boolean | undefined): string {
  if (isFolder === undefined) {
    const isHubName = /^[\w-]+\/[\w.-]+$/.test(path);
    const download = ` Is it a name on the Hugging Face hub? hf download ${path} --local-dir <folder>`;
    return `does not exist.${isHubName ? download : ""}`;
  }
  if (!isFolder) {
    return extname(path).toLowerCase() === ".gguf"
      ? "is a GGUF file, which is not read yet; give the Hugging Face folder it was made from."
      : "is a file, not a folder.";
  }
  return readdirSync(path).includes("plan.zip")
    ? "is a bundle, which is already compiled: run it instead."
    : "has no config.json.";
}
