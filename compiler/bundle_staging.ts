/**
 * Where a bundle is written until it is whole, and how it then takes its place.
 *
 *   <output>.hcinfer-<16 random digits>/    readable by its owner alone
 *     compile.lock    says whose folder this is; locked for as long as its process lives
 *     bundle/         what is written; after an exchange, the bundle that was replaced
 *     replaced/       the bundle that was replaced, where the system cannot exchange
 *
 * Names are random because process ids repeat between containers that share a folder. The lock is the system's (flock)
 * and not a file's age or owner: it is given back however a process ends, it is one for all containers of a machine,
 * and where there are no locks a left-over just stays. So a folder is removed only when it has the name, the mark
 * inside, and nobody behind it. The mark stays until the folder goes: a process can be killed at any moment. Looking
 * at what is at the output and replacing it are one step for other compiles: both hold the lock of the folder around it.
 */
import { randomBytes } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { exchange, FileLock } from "../ffi/files.ts";
import { bundleFiles, PLAN_FILE } from "./bundle.ts";
import { HcinferError } from "./errors.ts";
import { readRegularText } from "./files.ts";

const REPLACED = "replaced";
const MARK_FILE = "compile.lock";
const MARK = "hcinfer compile writes a bundle here. When no compile runs, this folder can be removed.\n";

export class Staging implements Disposable {
  /** The folder that `publish` makes visible. */
  readonly folder: string;
  /** Where it will be: what was asked for, with links followed. */
  readonly output: string;
  readonly #work: string;
  #lock: FileLock | undefined;
  readonly #exchange: typeof exchange;

  /**
   * Starts a folder for a bundle at `output` and removes what killed compiles to it have left. Throws
   * HcinferError("usage") when something is there that is not a bundle, or a bundle with files that are not its own.
   *
   * @param mode permissions of the folder
   */
  constructor(output: string, mode: number, exchangePaths = exchange) {
    this.output = followed(resolve(output));
    this.#exchange = exchangePaths;
    const parent = dirname(this.output);
    mkdirSync(parent, { recursive: true });
    {
      using _alone = FileLock.waitForFolder(parent);
      refuseOthers(this.output);
      removeLeftOvers(this.output);
    }
    this.#work = `${this.output}.hcinfer-${randomBytes(8).toString("hex")}`;
    this.folder = join(this.#work, "bundle");
    mkdirSync(this.#work, { mode: 0o700 });
    try {
      const mark = join(this.#work, MARK_FILE);
      this.#lock = FileLock.create(mark);
      // Only now: whoever reads the mark may take the folder when its lock is free.
      writeFileSync(mark, MARK);
      mkdirSync(this.folder, { mode });
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Makes the folder visible at `output`. When it throws, what was there is there again after the disposal. */
  publish(): void {
    using _alone = FileLock.waitForFolder(dirname(this.output));
    if (!existsSync(this.output)) return renameSync(this.folder, this.output);
    refuseOthers(this.output);
    if (this.#exchange(this.folder, this.output)) {
      return this.#keepOthers(() => void this.#exchange(this.folder, this.output), this.folder);
    }
    const replaced = join(this.#work, REPLACED);
    renameSync(this.output, replaced);
    // When this fails, or the process ends here, `restore` puts the other one back.
    renameSync(this.folder, this.output);
    this.#keepOthers(() => {
      renameSync(this.output, this.folder);
      renameSync(replaced, this.output);
    }, replaced);
    rmSync(replaced, { recursive: true });
  }

  /** Undoes the replacement when a file came to the old bundle in the last moment. */
  #keepOthers(undo: () => void, replaced: string): void {
    try {
      refuseOthers(replaced, this.output);
    } catch (error) {
      undo();
      throw error;
    }
  }

  /** Removes what is left: everything, unless it was published. */
  [Symbol.dispose](): void {
    if (existsSync(join(this.#work, REPLACED))) {
      using _alone = FileLock.waitForFolder(dirname(this.output));
      restore(this.#work, this.output);
    }
    rmSync(this.#work, { recursive: true, force: true });
    this.#lock?.[Symbol.dispose]();
  }
}

/** The path behind links: a bundle is replaced where it is, and the links to it stay. Another may be replacing it now. */
function followed(output: string): string {
  try {
    return realpathSync(output);
  } catch {
    // Nothing there, or what the next lines and `mkdir` complain about.
  }
  if (lstatSync(output, { throwIfNoEntry: false })?.isSymbolicLink()) {
    throw refusal(output, "is a link to nothing");
  }
  return output;
}

/** Refuses to replace `folder`, which stands for `output`, unless all of it is a bundle. */
function refuseOthers(folder: string, output = folder): void {
  const stat = lstatSync(folder, { throwIfNoEntry: false });
  if (stat === undefined) return;
  if (!stat.isDirectory()) throw refusal(output, "exists and is not a folder");
  const entries = readdirSync(folder, { withFileTypes: true });
  if (entries.length === 0) return;
  if (!entries.some(({ name }) => name === PLAN_FILE)) throw refusal(output, "exists and is not a bundle");
  const own = bundleFiles(folder);
  if (own === undefined) {
    throw refusal(output, `has a damaged ${PLAN_FILE}, so nobody knows which of its files are a bundle's`);
  }
  const others = entries.filter((entry) => entry.isDirectory() || !own.has(entry.name)).map((e) => e.name);
  if (others.length === 0) return;
  const named = others.slice(0, 5).join(", ") + (others.length > 5 ? ` and ${others.length - 5} more` : "");
  throw refusal(output, `is a bundle with files in it that are not the bundle's: ${named}`);
}

function refusal(output: string, what: string): HcinferError {
  return new HcinferError("usage", `${output} ${what}; nothing was touched. Choose another output folder.`);
}

/** Removes the folders that killed compiles to `output` have left, and puts back a bundle they had moved aside. */
function removeLeftOvers(output: string): void {
  const prefix = `${basename(output)}.hcinfer-`;
  for (const entry of readdirSync(dirname(output), { withFileTypes: true })) {
    const suffix = entry.name.startsWith(prefix) ? entry.name.slice(prefix.length) : "";
    if (!entry.isDirectory() || !/^[0-9a-f]{16}$/.test(suffix)) continue;
    const work = join(dirname(output), entry.name);
    const mark = join(work, MARK_FILE);
    if (!isMark(mark)) continue;
    using lock = FileLock.tryTake(mark);
    if (lock === undefined) continue;
    restore(work, output);
    rmSync(work, { recursive: true, force: true });
  }
}

function isMark(file: string): boolean {
  try {
    return readRegularText(file, MARK.length) === MARK;
  } catch {
    return false;
  }
}

/** Puts back the bundle that was moved aside, when nothing took its place. */
function restore(work: string, output: string): void {
  const replaced = join(work, REPLACED);
  if (existsSync(replaced) && !existsSync(output)) renameSync(replaced, output);
}
