/**
 * Ctrl-C and SIGTERM during long synchronous work. JavaScript's own signal events come only when the program waits for
 * something, which a compile does not do; without them the process would end in the middle of it, and leave its files.
 */
import { library } from "./open.ts";

/** While it lives, the first SIGINT, SIGTERM or SIGHUP is kept until it is asked for; a second one ends the process. */
export class InterruptWatch implements Disposable {
  constructor() {
    library().hc_watch_interrupts();
  }

  /** The number of the signal that came, 0 for none. */
  get signal(): number {
    return library().hc_interrupt();
  }

  [Symbol.dispose](): void {
    library().hc_unwatch_interrupts();
  }
}
