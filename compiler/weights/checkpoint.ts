/**
 * A checkpoint: a trained model as it is published, whatever the files it comes in. Each kind of file is a
 * CheckpointFormat in a file of its own; what is at a path decides which one opens it.
 */
import { readdirSync, statSync } from "node:fs";
import { dirname, extname } from "node:path";
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
    if (isGguf(path)) return `is a GGUF file, ${NO_GGUF}`;
    const holds = FORMATS.some((f) => f.isAt(dirname(path)));
    return `is a file, not a folder${holds ? `: give the folder that holds it, ${dirname(path)}` : ""}.`;
  }
  const names = readdirSync(path);
  if (names.includes("plan.zip")) return "is a bundle, which is already compiled: run it instead.";
  const gguf = names.find(isGguf);
  if (gguf !== undefined) return `has no config.json, but ${gguf}, a GGUF file, ${NO_GGUF}`;
  const weights = names.find((name) => name.endsWith(".safetensors"));
  if (weights !== undefined) {
    return `has ${weights} but no config.json: copy the one that belongs to it there.`;
  }
  return "has no config.json.";
}

const NO_GGUF = "which is not read: give the Hugging Face folder it was made from.";

function isGguf(path: string): boolean {
  return extname(path).toLowerCase() === ".gguf";
}
