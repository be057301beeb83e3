/**
 * Writes a bundle so that a reader sees all of it or nothing: it is written beside its place (bundle_staging.ts),
 * reaches the disk (fsync), and appears at once. It can be read by those who could read the checkpoint.
 */
import {
  closeSync,
  copyFileSync,
  fsyncSync,
  linkSync,
  openSync,
  readdirSync,
  statfsSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { zipSync } from "fflate";
import {
  BUNDLE_FORMAT,
  BUNDLE_VERSION,
  type Manifest,
  PLAN_FILE,
  type PlanFile,
  RUN_FILE,
  sha256,
  WEIGHTS_FILE,
} from "./bundle.ts";
import { BlockFile } from "./block_file.ts";
import { Staging } from "./bundle_staging.ts";
import { HcinferError } from "./errors.ts";
import type { Plan } from "./plan.ts";
import type { Report } from "./report.ts";
import type { TokenizerFile } from "./weights/checkpoint.ts";
import { layoutSafetensors, type SafetensorsLayout, type TensorSpec } from "./weights/safetensors.ts";

export interface WriterOptions {
  /** Whether `settle` will be called: then the file's header gets room for other tensors. Default false. */
  readonly settles?: boolean;
  /** Files that the bundle is made of: nobody may read it who may not read all of them. Default none. */
  readonly sources?: readonly string[];
}

/** What changes with budgets. */
export interface PlanContents {
  readonly plan: Plan;
  readonly graphText: string;
  readonly report: Report;
}

export interface BundleContents extends PlanContents {
  /** The tokenizer's files. */
  readonly tokenizer: readonly TokenizerFile[];
  /** The checksum of the weights' bytes, from the path of the finished file. */
  readonly checksum: (weightsPath: string) => string;
}

export class BundleWriter implements Disposable {
  readonly #output: string;
  readonly #mode: number;
  #staging: Staging | undefined;
  #layout: SafetensorsLayout;
  #missing: Set<string>;
  #weights: BlockFile | undefined;

  /**
   * Starts a bundle at `output` whose weights are `tensors`. Throws HcinferError("usage") when something else than a
   * bundle is at `output`, and HcinferError("environment") when the disk has no room.
   */
  constructor(
    output: string,
    tensors: readonly TensorSpec[],
    { settles = false, sources = [] }: WriterOptions = {},
  ) {
    this.#output = resolve(output);
    this.#layout = layoutSafetensors(tensors, METADATA, ALIGNMENT, settles ? headerRoom(tensors) : 0);
    this.#missing = new Set(tensors.map((t) => t.name));
    this.#mode = sharedMode(sources);
    this.#guard(() => {
      this.#staging = new Staging(output, this.#mode | (this.#mode & 0o444) >> 2);
      requireSpace(this.#folder, this.#layout.fileBytes);
      this.#weights = new BlockFile(openSync(join(this.#folder, WEIGHTS_FILE), "wx+", this.#mode));
      this.#weights.resize(this.#layout.fileBytes);
      this.#put(this.#layout.header, 0);
    });
  }

  get #folder(): string {
    if (this.#staging === undefined) throw new Error("the bundle is closed");
    return this.#staging.folder;
  }

  /** Bytes of weights.safetensors. */
  get bytes(): number {
    return this.#layout.fileBytes;
  }

  /**
   * Lays the file out anew, now that all sizes are known. `tensors` start with those written so far, which stay where
   * they are, and are no more and no larger than the first ones were.
   */
  settle(tensors: readonly TensorSpec[]): void {
    const before = this.#layout;
    const written = [...before.ranges.keys()].filter((name) => !this.#missing.has(name));
    const layout = layoutSafetensors(tensors, METADATA, ALIGNMENT, before.header.length);
    for (const name of written) {
      if (layout.ranges.get(name)?.offset !== before.ranges.get(name)?.offset) {
        throw new Error(`tensor ${name} was written and would move`);
      }
    }
    this.#layout = layout;
    this.#missing = new Set(tensors.map((t) => t.name).filter((name) => !written.includes(name)));
    this.#guard(() => {
      if (this.#weights === undefined) throw new Error("the bundle is closed");
      this.#weights.resize(layout.fileBytes);
      this.#put(layout.header, 0);
    });
  }

  /** The bytes of a tensor that was written. */
  read(name: string): Uint8Array {
    const range = this.#layout.ranges.get(name);
    if (range === undefined || this.#missing.has(name) || this.#weights === undefined) {
      throw new Error(`tensor ${name} is not written`);
    }
    const bytes = new Uint8Array(range.bytes);
    const weights = this.#weights;
    this.#guard(() => {
      if (weights.read(bytes, range.offset) === bytes.length) return;
      throw new Error(`${WEIGHTS_FILE} is cut off while it is written`);
    });
    return bytes;
  }

  /** Writes a tensor whose bytes are `parts`, one after another. Any order; each tensor once. */
  write(name: string, ...parts: readonly Uint8Array[]): void {
    const range = this.#layout.ranges.get(name);
    if (range === undefined || !this.#missing.delete(name)) throw new Error(`tensor ${name} is not awaited`);
    const bytes = parts.reduce((sum, part) => sum + part.length, 0);
    if (bytes !== range.bytes) {
      throw new Error(`tensor ${name} has ${bytes} bytes, ${range.bytes} were announced`);
    }
    this.#guard(() => {
      let at = range.offset;
      for (const part of parts) {
        this.#put(part, at);
        at += part.length;
      }
    });
  }

  /** Writes everything else, and makes the bundle visible at `output`. */
  finish({ plan, graphText, report, tokenizer, checksum }: BundleContents): void {
    if (this.#missing.size > 0) throw new Error(`${this.#missing.size} tensors were not written`);
    this.#guard(() => {
      this.#weights?.flush();
      this.#closeWeights();
      const weightsPath = join(this.#folder, WEIGHTS_FILE);
      const encode = (text: string) => new TextEncoder().encode(text);
      const copied = [
        ...tokenizer.map((file) => [file.name, file.read()] as const),
        [RUN_FILE, encode(runScript())] as const,
      ];
      for (const [name, bytes] of copied) this.#create(name, bytes);
      const zip = planZip({ plan, graphText, report }, {
        files: Object.fromEntries(copied.map(([name, bytes]) => [name, sha256(bytes)])),
        weights: { bytes: this.#layout.fileBytes, checksum: checksum(weightsPath) },
      });
      this.#create(PLAN_FILE, zip);
      if (this.#staging) publish(this.#staging);
      this[Symbol.dispose]();
    });
  }

  /** Removes what was written, unless the bundle is finished. */
  [Symbol.dispose](): void {
    this.#closeWeights();
    this.#staging?.[Symbol.dispose]();
    this.#staging = undefined;
  }

  #create(name: string, bytes: Uint8Array): void {
    writeFileSync(join(this.#folder, name), bytes, { flag: "wx", mode: this.#mode });
  }

  #put(bytes: Uint8Array, position: number): void {
    if (this.#weights === undefined) throw new Error("the bundle is closed");
    this.#weights.write(bytes, position);
  }

  #closeWeights(): void {
    if (this.#weights !== undefined) closeSync(this.#weights.descriptor);
    this.#weights = undefined;
  }

  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this[Symbol.dispose]();
      throw explain(error, this.#output);
    }
  }
}

/** plan.zip, of a bundle with these other files and weights. */
function planZip(
  { plan, graphText, report }: PlanContents,
  { files, weights }: Pick<Manifest, "files" | "weights">,
): Uint8Array {
  const encode = (text: string) => new TextEncoder().encode(text);
  const parts = {
    "plan.json": encode(JSON.stringify(plan)),
    "graph.py": encode(graphText),
    "report.json": encode(JSON.stringify(report)),
  };
  const sums = Object.fromEntries(Object.entries(parts).map(([name, bytes]) => [name, sha256(bytes)]));
  const manifest: Manifest = {
    format: BUNDLE_FORMAT,
    version: BUNDLE_VERSION,
    files: { ...sums, ...files },
    weights,
  };
  // The time is fixed, so that one model and one set of options give one file.
  const zipped = { "manifest.json": encode(JSON.stringify(manifest, null, 1)), ...parts };
  return zipSync(zipped, { mtime: "1980-01-01" });
}

/**
 * Writes the bundle `from` to `output`, which may be the same folder, with another plan: its weights and all other files
 * are the same ones (hard links), or copies where links cannot be. Throws as `BundleWriter` does.
 */
export function replacePlan(from: PlanFile, output: string, contents: PlanContents): void {
  const { files: { "plan.json": _, "graph.py": __, "report.json": ___, ...files }, weights } = from.manifest;
  try {
    using staging = new Staging(output, statSync(from.path).mode & 0o777);
    for (const name of [WEIGHTS_FILE, ...Object.keys(files)]) {
      linkOrCopy(join(from.path, name), join(staging.folder, name));
    }
    const mode = statSync(join(from.path, PLAN_FILE)).mode & 0o777;
    const zip = planZip(contents, { files, weights });
    writeFileSync(join(staging.folder, PLAN_FILE), zip, { flag: "wx", mode });
    publish(staging);
  } catch (error) {
    throw explain(error, output);
  }
}

function linkOrCopy(from: string, to: string): void {
  try {
    linkSync(from, to);
  } catch {
    // Another file system, or one without links: a copy says what is wrong where that is not it.
    copyFileSync(from, to);
  }
}

/** Makes a bundle visible once all of it is on the disk. */
function publish(staging: Staging): void {
  for (const name of readdirSync(staging.folder)) flush(join(staging.folder, name), "r+");
  flush(staging.folder, "r");
  staging.publish();
  flush(dirname(staging.output), "r");
}

const METADATA = { format: BUNDLE_FORMAT };
/** Kernels read every tensor with aligned loads of up to 64 bytes. */
const ALIGNMENT = 64;

/** Header bytes that any smaller `tensors` fit in: their own, and a filler before each. */
function headerRoom(tensors: readonly TensorSpec[]): number {
  const fillerBytes = 128;
  return layoutSafetensors(tensors, METADATA).header.length + fillerBytes * tensors.length;
}

/**
 * Permissions of files made from `sources`: of the group and of others what every source gives them, in a folder they
 * can enter; of the owner reading and writing. The umask takes away from this as from any new file.
 */
function sharedMode(sources: readonly string[]): number {
  return sources.reduce((mode, source) => {
    const status = statSync(source);
    // Found now rather than when everything else is done.
    if (!status.isFile()) throw new HcinferError("checkpoint", `${source} is not a file`);
    const entered = statSync(dirname(source)).mode;
    const [group, others] = [entered & 0o010 ? 0o070 : 0, entered & 0o001 ? 0o007 : 0];
    return mode & (status.mode & (group | others) | 0o600);
  }, 0o666);
}

function requireSpace(folder: string, bytes: number): void {
  const { bavail, bsize } = statfsSync(folder);
  const free = bavail * bsize;
  if (free >= bytes || bsize === 0) return;
  throw noSpace(folder, `${megabytes(bytes)} are needed and ${megabytes(free)} are free`);
}

function noSpace(path: string, what: string, cause?: unknown): HcinferError {
  const message = `no space left on the disk of ${dirname(path)}: ${what}. ` +
    "Free some, or choose another output folder. Nothing was left behind.";
  return new HcinferError("environment", message, { cause });
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Turns what a file system refuses into an error that says what to do. */
export function explain(error: unknown, output: string): unknown {
  const code = codeOf(error);
  if (code === "ENOSPC" || code === "EDQUOT") return noSpace(output, "it is full", error);
  if (
    [
      "EACCES",
      "EPERM",
      "EROFS",
      "ENOENT",
      "ENOTDIR",
      "ENAMETOOLONG",
      "EIO",
      "EFBIG",
      "EBUSY",
      "EXDEV",
      "ENOTEMPTY",
      "EEXIST",
      "ELOOP",
    ].includes(code ?? "")
  ) {
    return new HcinferError("environment", `cannot write ${output}: ${(error as Error).message}`, {
      cause: error,
    });
  }
  return error;
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && "code" in error ? String(error.code) : undefined;
}

/** Waits until a file or folder is on the disk. Folders cannot be flushed everywhere (Windows): then it is skipped. */
function flush(path: string, flags: "r" | "r+"): void {
  let descriptor: number | undefined;
  try {
    descriptor = openSync(path, flags);
    fsyncSync(descriptor);
  } catch (error) {
    if (flags === "r+" && ["ENOSPC", "EDQUOT", "EIO"].includes(codeOf(error) ?? "")) throw error;
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

/** run.ts: hands over to `hcinfer run` of the clone at HCINFER_HOME, or of the launcher that is installed. */
function runScript(): string {
  return `// Runs this bundle: deno run -A run.ts "prompt" [options of hcinfer run]
// With the hcinfer in the folder HCINFER_HOME or, when that is not set, the one that deno task install installed.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const bundle = fileURLToPath(new URL(".", import.meta.url));
const { HCINFER_HOME: home = "", HCINFER_BIN: bin = "", PATH = "" } = process.env;
const [config, main] = [join(home, "deno.json"), join(home, "main.ts")];
const folders = [bin, ...PATH.split(delimiter), join(homedir(), ".local", "bin")].filter((folder) => folder !== "");
const clone = existsSync(main) ? [process.execPath, "run", "-A", "--config", config, main] : [];
const installed = folders.map((folder) => join(folder, "hcinfer")).filter((path) => existsSync(path)).slice(0, 1);
const [program, ...before] = home ? clone : installed;
if (program === undefined) {
  const found = home ? \`HCINFER_HOME is \${home}, which has no main.ts\` : "hcinfer is not installed";
  console.error(\`error: \${found}: run "deno task install" in its folder, or set HCINFER_HOME to that folder\`);
  process.exit(${new HcinferError("environment", "").exitCode});
}
const options = [...before, "run", bundle, ...process.argv.slice(2)];
const { status, error } = spawnSync(program, options, { stdio: "inherit" });
if (error) console.error(error.message);
process.exit(status ?? 1);
`;
}
