/** Programs and memory for the tests of the engine. */
import { Engine, type StepCounts, type StepStatus } from "./engine.ts";
import type { Instruction, InstructionOf, Opcode, Operand, Segment } from "./instructions.ts";
import { EVENT_BYTES, MAILBOX_EVENTS, SEGMENTS } from "./instructions.ts";
import { allocate, type NativeBuffer } from "./mapping.ts";

export const at = (offset: number, segment: Segment = "arena"): Operand => ({ segment, offset });

export type Flow = Partial<Pick<Instruction, "over" | "when" | "barrier" | "after">>;

export function instruction<P extends Opcode>(
  op: P,
  operands: InstructionOf<P>["operands"],
  integers: InstructionOf<P>["integers"],
  reals: InstructionOf<P>["reals"],
  flow: Flow = {},
): InstructionOf<P> {
  return { op, operands, integers, reals, over: "tokens", when: "always", barrier: true, after: 0, ...flow };
}

const event = (n: number) => ({ event: at(MAILBOX_EVENTS + EVENT_BYTES * n, "mailbox") });
export const signal = (n: number, flow: Flow = {}) => instruction("signal", event(n), {}, {}, flow);
export const wait = (n: number, flow: Flow = {}) => instruction("wait", event(n), {}, {}, flow);

export const WIDTH = 24;
export const TOKENS = 3;
/** Bytes between the values of `add`. */
export const SLOT = 512;

/** Value `out` = value a + value b, of WIDTH elements a token; values are SLOT bytes apart in the arena. */
export function add(a: number, b: number, out: number, flow: Flow = {}): InstructionOf<"elementwise"> {
  const sizes = { kind: 0, width: WIDTH, aStride: WIDTH, bStride: WIDTH };
  return instruction(
    "elementwise",
    { a: at(SLOT * a), b: at(SLOT * b), out: at(SLOT * out) },
    sizes,
    {},
    flow,
  );
}

export interface Machine extends Disposable {
  readonly engine: Engine;
  readonly memory: Readonly<Record<Segment, NativeBuffer>>;
  /** All tokens of a value. */
  value(n: number): Float32Array;
  /** Sets or clears the mailbox's abort flag. */
  abort(flag: boolean): void;
  step(counts?: Partial<StepCounts>): StepStatus;
}

export interface MachineOptions {
  /** Of each lane, 1 where nothing is said. */
  readonly threads?: readonly number[];
  /** Bytes of segments; 4096 of the arena, 1024 of the mailbox and none of others where nothing is said. */
  readonly bytes?: Partial<Record<Segment, number>>;
  readonly capacity?: number;
}

/** An engine for these lanes, with memory of its own. */
export function machine(
  programs: readonly (readonly Instruction[])[],
  options: MachineOptions = {},
): Machine {
  const bytes: Partial<Record<Segment, number>> = { arena: 4096, mailbox: 1024, ...options.bytes };
  const memory = Object.fromEntries(
    SEGMENTS.map((segment) => [segment, allocate(bytes[segment] ?? 0)]),
  ) as Record<Segment, NativeBuffer>;
  try {
    const engine = new Engine({
      lanes: programs.map((program, lane) => ({ program, threads: options.threads?.[lane] ?? 1 })),
      memory,
      capacity: options.capacity ?? TOKENS,
    });
    const { arena, mailbox } = memory;
    return {
      engine,
      memory,
      value: (n) => new Float32Array(arena.bytes.buffer, arena.bytes.byteOffset + SLOT * n, WIDTH * TOKENS),
      abort: (flag) => void (new Uint32Array(mailbox.bytes.buffer, mailbox.bytes.byteOffset, 1)[0] = +flag),
      step: (counts) => engine.step({ tokens: TOKENS, rows: 0, tiles: 0, mode: "decode", ...counts }),
      [Symbol.dispose]: () => {
        engine[Symbol.dispose]();
        memory.weights.close();
      },
    };
  } catch (error) {
    for (const segment of Object.values(memory)) segment.close();
    throw error;
  }
}
