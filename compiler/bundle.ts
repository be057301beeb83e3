/**
 * A bundle: what `hcinfer compile` writes and the runtime reads. A folder of
 *
 *   plan.zip              manifest.json  version, checksums of everything else
 *                         plan.json      the plan (plan.ts)
 *                         graph.py       the graph as text
 *                         report.json    what compiling measured
 *   weights.safetensors   every tensor at a multiple of 64 bytes, mapped and never copied
 *   tokenizer.json, ...   the checkpoint's own files
 *   run.ts                runs the bundle with the hcinfer that is installed
 *
 * A file that the manifest does not list is not part of the bundle and is never read.
 * Opening checks everything it reads against the manifest, and every size that native code will trust against the
 * weights. Checksums find accidents and edits; they are no signature.
 */
import { createHash } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { mapFile, type Mapping } from "../ffi/mapping.ts";
import { unzipParts } from "./archive.ts";
import { checkGraph, checkTensors } from "./bundle_check.ts";
import { HcinferError } from "./errors.ts";
import { MOST_TEXT_BYTES, readRegularFile } from "./files.ts";
import { faultsText, parseJson } from "./json.ts";
import { Plan, PLAN_VERSION } from "./plan.ts";
import { Report } from "./report.ts";
import { bytesChecksum } from "./weights/checksum.ts";
import { readSafetensors, type TensorView } from "./weights/safetensors.ts";

export const BUNDLE_FORMAT = "hcinfer bundle";
export const PLAN_FILE = "plan.zip";
export const WEIGHTS_FILE = "weights.safetensors";
export const RUN_FILE = "run.ts";

/** Raised when an older hcinfer could not read a new bundle, or a new one an old bundle. */
export const BUNDLE_VERSION = PLAN_VERSION;

const Sha256 = z.string().regex(/^[0-9a-f]{64}$/);

export const Manifest = z.strictObject({
  format: z.literal(BUNDLE_FORMAT),
  version: z.literal(BUNDLE_VERSION),
  /** sha256 of plan.json, graph.py, report.json, and of the files copied beside them. */
  files: z.record(z.string(), Sha256),
  /** Bytes of weights.safetensors and their checksum (weights/checksum.ts). */
  weights: z.strictObject({ bytes: z.int().positive(), checksum: z.string() }),
});
export type Manifest = z.infer<typeof Manifest>;

/** plan.zip, checked. */
export interface PlanFile {
  readonly path: string;
  readonly plan: Plan;
  readonly graphText: string;
  readonly report: Report;
  readonly manifest: Manifest;
  /** As `Bundle.file`. */
  readonly file: (name: string) => Uint8Array<ArrayBuffer> | undefined;
}

/**
 * What is in plan.zip, and the most bytes it unfolds to. The plan of a layer takes 12 kB and its report 5 kB, so these
 * leave thirty times the room that the largest dense model known needs.
 */
const PLAN_PARTS = {
  "manifest.json": 2 ** 20,
  "plan.json": 64 * 2 ** 20,
  "graph.py": 64 * 2 ** 20,
  "report.json": 64 * 2 ** 20,
} as const;
type PlanPart = keyof typeof PLAN_PARTS;
/** Of plan.zip itself. */
const MOST_PLAN_BYTES = 64 * 2 ** 20;
/** Of a file copied from the checkpoint, such as tokenizer.json. */
const MOST_FILE_BYTES = MOST_TEXT_BYTES;

/**
 * Reads a bundle's plan without touching its weights. Throws HcinferError("bundle") with the reason when `path` is
 * no bundle, or one that is cut off, edited or of another version, or whose graph and lanes are not sound.
 */
export function readPlan(path: string): PlanFile {
  const file = join(path, PLAN_FILE);
  const fail = refuser(path);
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat?.isDirectory()) {
    const found = stat
      ? "it is a file; a bundle is a folder that hcinfer compile wrote"
      : "there is no such folder";
    throw new HcinferError("bundle", `${path} is not a bundle: ${found}`);
  }
  if (!existsSync(file)) {
    const hint = existsSync(join(path, "config.json")) ? "; it is a model: compile it first" : "";
    throw new HcinferError("bundle", `${path} is not a bundle: it has no ${PLAN_FILE}${hint}`);
  }
  const parts = unzip(file, fail);
  const part = (name: PlanPart) => parts[name] ?? fail(`${PLAN_FILE} has no ${name}`);
  const manifest = readManifest(part("manifest.json"), fail);
  const checked = (name: PlanPart): Uint8Array => {
    checkSha256(name, part(name), manifest, fail);
    return part(name);
  };
  const parsed = Plan.safeParse(json("plan.json", checked("plan.json"), fail));
  if (!parsed.success) return fail(`its plan does not fit: ${faultsText(parsed.error)}`);
  const problem = checkGraph(parsed.data);
  if (problem !== undefined) fail(problem);
  const report = Report.safeParse(json("report.json", checked("report.json"), fail));
  if (!report.success) return fail(`its report does not fit: ${faultsText(report.error)}`);
  return {
    path,
    plan: parsed.data,
    graphText: new TextDecoder().decode(checked("graph.py")),
    report: report.data,
    manifest,
    file: (name) => readListed(path, manifest, name),
  };
}

/** Names of all files of the bundle in a folder, of any version; undefined when its manifest cannot be read. */
export function bundleFiles(path: string): Set<string> | undefined {
  try {
    const zip = readRegularFile(join(path, PLAN_FILE), MOST_PLAN_BYTES);
    const { "manifest.json": bytes } = unzipParts(zip, { "manifest.json": PLAN_PARTS["manifest.json"] });
    const found = z.looseObject({
      format: z.literal(BUNDLE_FORMAT),
      files: z.record(z.string(), z.unknown()),
    })
      .parse(parseJson(bytes ?? new Uint8Array()));
    const copies = Object.keys(found.files).filter((name) => !Object.hasOwn(PLAN_PARTS, name));
    return new Set([PLAN_FILE, WEIGHTS_FILE, RUN_FILE, ...copies]);
  } catch {
    return undefined;
  }
}

export class Bundle implements Disposable {
  readonly path: string;
  readonly plan: Plan;
  readonly graphText: string;
  readonly report: Report;
  readonly #file: PlanFile["file"];
  readonly #tensors: ReadonlyMap<string, TensorView>;
  /** The weights file, for executors that address it whole. */
  readonly mapping: Mapping;

  constructor(file: PlanFile, tensors: ReadonlyMap<string, TensorView>, mapping: Mapping) {
    this.path = file.path;
    this.plan = file.plan;
    this.graphText = file.graphText;
    this.report = file.report;
    this.#file = file.file;
    this.#tensors = tensors;
    this.mapping = mapping;
  }

  /** A tensor of weights.safetensors; its bytes are a view of the mapping, valid until `close`. */
  tensor(name: string): TensorView {
    const tensor = this.#tensors.get(name);
    if (tensor === undefined) throw new HcinferError("bundle", `${this.path} has no tensor ${name}`);
    return tensor;
  }

  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  /**
   * The bytes of a file beside plan.zip, such as `tokenizer.json`, compared with the manifest as they are read.
   * Undefined when the manifest does not list it, whatever lies in the folder. Throws HcinferError("bundle") when it
   * is listed, and missing or changed.
   */
  file(name: string): Uint8Array<ArrayBuffer> | undefined {
    return this.#file(name);
  }

  close(): void {
    this.mapping.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

export interface OpenOptions {
  /**
   * Compares the checksum of all weights, which reads the whole file at the speed of memory (or of the disk, the
   * first time). Default true. Sizes and shapes are checked in any case.
   */
  readonly verify?: boolean;
  /** Threads that compute the checksum. Default 2. */
  readonly threads?: number;
}

/**
 * Opens the bundle at `path`. Throws HcinferError("bundle") with the reason when it is cut off, edited, of another
 * version, or says what its weights do not hold.
 */
export function openBundle(path: string, { verify = true, threads = 2 }: OpenOptions = {}): Bundle {
  const file = readPlan(path);
  const fail = refuser(path);
  for (const name of Object.keys(file.manifest.files)) file.file(name);
  const weightsPath = join(path, WEIGHTS_FILE);
  if (!existsSync(weightsPath)) fail(`${WEIGHTS_FILE} is missing`);
  const mapping = mapFile(weightsPath, "bundle");
  try {
    const { bytes, checksum: expected } = file.manifest.weights;
    if (mapping.byteLength !== bytes) {
      fail(`${WEIGHTS_FILE} has ${mapping.byteLength} bytes, ${bytes} were written`);
    }
    if (verify && bytesChecksum(mapping.bytes, threads) !== expected) {
      fail(`${WEIGHTS_FILE} was changed since it was compiled`);
    }
    const { tensors } = readSafetensors(mapping.bytes, weightsPath, "bundle");
    const problem = checkTensors(file.plan, tensors);
    if (problem !== undefined) fail(problem);
    return new Bundle(file, tensors, mapping);
  } catch (error) {
    mapping.close();
    throw error;
  }
}

/** A plain name in the bundle's own folder. */
const FILE_NAME = /^[\w-][\w.-]*$/;

function readListed(path: string, manifest: Manifest, name: string): Uint8Array<ArrayBuffer> | undefined {
  if (Object.hasOwn(PLAN_PARTS, name) || !Object.hasOwn(manifest.files, name)) return undefined;
  const fail = refuser(path);
  if (!FILE_NAME.test(name)) fail(`its manifest names ${JSON.stringify(name)}, which is no file of it`);
  const file = join(path, name);
  if (!existsSync(file)) fail(`${name} is missing`);
  const bytes = readRegularFile(file, MOST_FILE_BYTES, "bundle");
  if (sha256(bytes) !== manifest.files[name]) fail(`${name} was changed since it was compiled`);
  return bytes;
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

type Refuse = (reason: string) => never;

function refuser(path: string): Refuse {
  return (reason) => {
    throw new HcinferError("bundle", `${path} cannot be used: ${reason}. Compile it again.`);
  };
}

function unzip(file: string, fail: Refuse): Partial<Record<PlanPart, Uint8Array>> {
  const bytes = readRegularFile(file, MOST_PLAN_BYTES, "bundle");
  try {
    return unzipParts(bytes, PLAN_PARTS);
  } catch (error) {
    return fail(`${PLAN_FILE} is damaged or cut off (${(error as Error).message})`);
  }
}

function readManifest(bytes: Uint8Array, fail: Refuse): Manifest {
  const found = json("manifest.json", bytes, fail);
  const head = z.looseObject({ format: z.literal(BUNDLE_FORMAT), version: z.int() }).safeParse(found);
  if (!head.success) return fail("its manifest is none of hcinfer's");
  if (head.data.version !== BUNDLE_VERSION) {
    fail(`it is of version ${head.data.version}, and this hcinfer reads version ${BUNDLE_VERSION}`);
  }
  const parsed = Manifest.safeParse(found);
  return parsed.success ? parsed.data : fail(`its manifest does not fit: ${faultsText(parsed.error)}`);
}

function checkSha256(name: string, bytes: Uint8Array, manifest: Manifest, fail: Refuse): void {
  const expected = manifest.files[name];
  if (expected === undefined) fail(`its manifest has no checksum of ${name}`);
  if (sha256(bytes) !== expected) fail(`${name} in ${PLAN_FILE} was changed since it was compiled`);
}

function json(name: PlanPart, bytes: Uint8Array, fail: Refuse): unknown {
  try {
    return parseJson(bytes);
  } catch (error) {
    return fail(`${name} in ${PLAN_FILE} is damaged: ${(error as Error).message.slice(0, 200)}`);
  }
}
