/** Another program that computes without end, on one core. */
import { type ChildProcess, spawn } from "node:child_process";

export class BusyLoop implements Disposable {
  readonly #child: ChildProcess;

  /** @param core where it stays */
  constructor(core: number) {
    this.#child = spawn("taskset", ["-c", `${core}`, "sh", "-c", "while :; do :; done"], { stdio: "ignore" });
    this.#child.on("error", () => {
      throw new Error("a load needs taskset (Debian package util-linux)");
    });
  }

  [Symbol.dispose](): void {
    this.#child.kill("SIGKILL");
  }
}
