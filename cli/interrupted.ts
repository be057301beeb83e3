/** Ctrl-C and its like, once what was running has ended in order: the command line says nothing and exits as shells do. */
import { InterruptWatch } from "../ffi/interrupts.ts";

const SIGINT = 2;

export class Interrupted extends Error {
  override readonly name = "Interrupted";

  constructor(readonly signal = SIGINT) {
    super(`signal ${signal}`);
  }

  /** 130 for Ctrl-C, 143 for SIGTERM. */
  get exitCode(): number {
    return 128 + this.signal;
  }
}

/** Does `work`, which calls its argument now and then: that throws Interrupted when a signal has come. */
export async function interruptible<T>(work: (check: () => void) => T | Promise<T>): Promise<T> {
  using watch = new InterruptWatch();
  return await work(() => {
    if (watch.signal !== 0) throw new Interrupted(watch.signal);
  });
}
