/** Locks that the system takes back when their process ends, however it ends, and exchanging two folders in one step. */
import { library } from "./open.ts";

/** A lock on a file or folder (flock): seen by every process that shares the file system of one kernel, in containers too. */
export class FileLock implements Disposable {
  #file: number | undefined;

  private constructor(file: number) {
    this.#file = file;
  }

  /** Creates the file and holds its lock; undefined when something is there already or it cannot be created. */
  static create(path: string): FileLock | undefined {
    const file = library().hc_lock_file(cString(path), 1);
    return file < 0 ? undefined : new FileLock(file);
  }

  /** The lock of a file that is there; undefined when somebody holds it, or the file system has no locks. */
  static tryTake(path: string): FileLock | undefined {
    const file = library().hc_lock_file(cString(path), 0);
    return file < 0 ? undefined : new FileLock(file);
  }

  /** The lock of a folder, once everybody else has given it back; undefined when the file system has no locks. */
  static waitForFolder(path: string): FileLock | undefined {
    const file = library().hc_lock_folder(cString(path));
    return file < 0 ? undefined : new FileLock(file);
  }

  [Symbol.dispose](): void {
    if (this.#file !== undefined) library().hc_unlock_file(this.#file);
    this.#file = undefined;
  }
}

/** Exchanges two paths so that nobody sees either of them missing. False where that cannot be done; then nothing changed. */
export function exchange(a: string, b: string): boolean {
  return library().hc_exchange(cString(a), cString(b)) === 0;
}

function cString(path: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${path}\0`);
}
