/**
 * Work on text that cannot hang. A tokenizer.json and a chat template are untrusted programs of a kind: nested loops, an
 * expression that backtracks for ever, a rule that is slow on one long word. `withinTime` runs such work where it is,
 * on the caller's thread and objects, and stops it at a limit, wherever it is: V8 ends a script at the next turn of a
 * loop, call or step back of an expression when node:vm's timeout has passed. It costs about 0.05 ms a call.
 *
 * Not bounded: memory, other than by what can be filled in that time; and single operations of the JavaScript runtime
 * itself, which are linear in their input. Growing and collecting memory can delay the stop by some seconds.
 */
import { performance } from "node:perf_hooks";
import { createContext, Script } from "node:vm";
import { type ErrorKind, HcinferError } from "../compiler/errors.ts";

/** Ten times what a short text ever took on a busy machine; a template can fill 1 GB in it. */
const LEAST_SECONDS = 2;

/** Encoding takes 1 to 2 us a character on one slow core, rendering and decoding less. */
const SECONDS_PER_CHARACTER = 25e-6;

/**
 * Work that ends in the last milliseconds of its limit counts as too late: a timeout that strikes between the end of
 * the work and the end of the script would end the program.
 */
const MARGIN_MILLISECONDS = 100;

/** How long work on this many characters, or tokens, may take. */
export function secondsFor(characters: number): number {
  return Math.ceil(LEAST_SECONDS + characters * SECONDS_PER_CHARACTER);
}

/** How long work may take, and the error when it takes longer: `doing` took more than `seconds`: `advice`. */
export interface TimeLimit {
  readonly seconds: number;
  readonly kind: ErrorKind;
  readonly doing: string;
  readonly advice: string;
}

interface Scope {
  work: () => unknown;
  late: () => boolean;
}

// What `work` gives reaches the caller by its closure, as does what it throws.
const script = new Script("work(); while (late()) {}");
let scope: Scope | undefined;

/**
 * What `work` returns or throws. Not reentrant, and nothing that `work` changes may be half changed for ever: it is left
 * without its `finally` blocks when it is stopped.
 * @throws {HcinferError} of `limit.kind`: the limit has passed
 */
export function withinTime<T>(limit: TimeLimit, work: () => T): T {
  scope ??= createContext({ work: () => {}, late: () => false }) as Scope;
  const milliseconds = limit.seconds * 1000;
  const deadline = performance.now() + milliseconds - MARGIN_MILLISECONDS;
  let outcome: { readonly value: T } | undefined;
  scope.work = () => void (outcome = { value: work() });
  scope.late = () => performance.now() > deadline;
  try {
    script.runInContext(scope, { timeout: milliseconds });
  } catch (error) {
    if ((error as { code?: unknown }).code !== "ERR_SCRIPT_EXECUTION_TIMEOUT") throw error;
    outcome = undefined;
  }
  if (outcome) return outcome.value;
  throw new HcinferError(
    limit.kind,
    `${limit.doing} took more than ${limit.seconds} s and was stopped: ${limit.advice}`,
  );
}
