/** The two instruction lists of a lowering as they grow, the events between them, and when the lanes run at once. */
import type { InstructionOf, Opcode } from "../../ffi/instructions.ts";
import { type Draft, type Flight, type Place, times } from "./cpu_memory.ts";
import type { Address } from "./cpu_places.ts";

/** A value with what is added to it where it is read. */
interface MergedPlaces {
  readonly base: Place;
  readonly delta0: Place | undefined;
  readonly delta1: Place | undefined;
}

export class Program {
  readonly backbone: Draft[] = [];
  readonly compensation: Draft[] = [];
  #target = this.backbone;
  #events = 0;

  get events(): number {
    return this.#events;
  }

  /** Where instructions go from here on. */
  enter(lane: "backbone" | "compensation"): void {
    this.#target = this[lane];
  }

  emit<P extends Opcode>(
    op: P,
    barrier: boolean,
    operands: InstructionOf<P, Place>["operands"],
    integers: InstructionOf<P, Place>["integers"],
    reals: InstructionOf<P, Place>["reals"],
    when: Draft["when"] = "always",
    after = 0,
  ): void {
    const instruction: InstructionOf<P, Place> = { op, barrier, after, operands, integers, reals, when };
    this.#target.push(instruction as unknown as Draft);
  }

  /** Number of instructions of the present lane. */
  get length(): number {
    return this.#target.length;
  }

  /**
   * Emits a consumer of merged values: once where prompt and token steps read the same deltas, else once for each,
   * the prompt's without the deltas that only tokens have.
   */
  perMode(sources: readonly Address[], emit: (merged: (a: Address) => MergedPlaces) => void): void {
    const places = (prompt: boolean) => (address: Address): MergedPlaces => {
      const deltas = address.deltas.filter((delta) => !(prompt && delta.decodeOnly));
      return { base: address.place, delta0: deltas[0]?.place, delta1: deltas[1]?.place };
    };
    if (!sources.some((source) => source.deltas.some((delta) => delta.decodeOnly))) {
      return emit(places(false));
    }
    for (const when of ["prefill", "decode"] as const) {
      const first = this.#target.length;
      emit(places(when === "prefill"));
      for (let n = first; n < this.#target.length; n++) this.#target[n] = { ...this.#target[n]!, when };
    }
  }

  // ---- between lanes

  /** Publishes that everything before it is done, which takes a barrier after the last instruction. */
  signal(event: number): void {
    const last = this.#target.at(-1);
    if (last) this.#target[this.#target.length - 1] = { ...last, barrier: true };
    this.emit("signal", false, {}, { event: this.#event(event) }, {});
  }

  wait(event: number): void {
    this.emit("wait", false, {}, { event: this.#event(event) }, {});
  }

  #event(event: number): number {
    this.#events = Math.max(this.#events, event + 1);
    return event;
  }

  /** The compensation program between each wait and the signal that answers it, with the backbone's times of both. */
  flights(): Flight[] {
    const at = times(this.backbone);
    const when = (op: "signal" | "wait", event: number) => {
      const index = this.backbone.findIndex((i) => i.op === op && i.integers.event === event);
      return at[index] ?? 0;
    };
    const flights: Flight[] = [];
    let from = 0, first = 0;
    this.compensation.forEach((instruction, n) => {
      if (instruction.op === "wait") {
        from = when("signal", instruction.integers.event);
        first = n;
      } else if (instruction.op === "signal") {
        const to = when("wait", instruction.integers.event);
        flights.push({ instructions: this.compensation.slice(first, n), from: Math.max(0, from - 1), to });
      }
    });
    return flights;
  }
}

/** The three operands of a merged value, under the names the instruction table gives them. */
export function prefixed<N extends string>(
  name: N,
  places: MergedPlaces,
): { [K in N | `${N}Delta0` | `${N}Delta1`]: Place | undefined } {
  return { [name]: places.base, [`${name}Delta0`]: places.delta0, [`${name}Delta1`]: places.delta1 } as {
    [K in N | `${N}Delta0` | `${N}Delta1`]: Place | undefined;
  };
}
