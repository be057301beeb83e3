/** Ctrl-C and its like, once what was running has ended in order: the command line says nothing and exits as shells do. */
import process from "node:process";
import { InterruptWatch } from "../ffi/interrupts.ts";

const SIGINT = 2, SIGTERM = 15;

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

/**
 * Does `work`, whose signal Ctrl-C and SIGTERM abort with an Interrupted. For work that leaves the event loop free: it ends as
 * soon as its steps look at the signal.
 */
export async function abortable<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const handlers = [["SIGINT", SIGINT], ["SIGTERM", SIGTERM]].map(([name, signal]) =>
    [name as "SIGINT" | "SIGTERM", () => controller.abort(new Interrupted(Number(signal)))] as const
  );
  for (const [name, handler] of handlers) process.once(name, handler);
  try {
    const result = await work(controller.signal);
    controller.signal.throwIfAborted();
    return result;
  } finally {
    for (const [name, handler] of handlers) process.off(name, handler);
  }
}

/**
 * Does `work`, which calls its argument now and then: that throws Interrupted when a signal has come. For work that holds the
 * event loop.
 */
export async function interruptible<T>(work: (check: () => void) => T | Promise<T>): Promise<T> {
  using watch = new InterruptWatch();
  return await work(() => {
    if (watch.signal !== 0) throw new Interrupted(watch.signal);
  });
}
