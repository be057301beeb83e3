/**
 * The lanes of a plan as programs of the native engine.
 *
 * Corrections "async": each lane is a program; they meet in events. "inline": one program, nodes in graph order. A window's
 * choice of channels (or first factor), its linear and the sums stand beside each other there and run without a barrier
 * between them: a thread that finds no more of one goes on with the next, a sum waits only until its choice is
 * complete, and one barrier ends all. "off": the backbone's nodes alone. The numbers of the first two are the same.
 */
import { type Node, producers } from "../../../compiler/ir/graph.ts";
import { EVENT_BYTES, MAILBOX_EVENTS } from "../../../compiler/memory.ts";
import { windowOf } from "../../../compiler/passes/schedule.ts";
import { type LanePlan, type Plan, splitThreads } from "../../../compiler/plan.ts";
import type { Instruction } from "../../../ffi/instructions.ts";
import type { Encoder } from "../encode.ts";
import type { Observers } from "./observe.ts";

export type ProgramMode = Plan["corrections"]["mode"];

export interface Lane {
  readonly program: readonly Instruction[];
  readonly threads: number;
}

/**
 * @param plan whose graph has no corrections where the mode is "off" (`withoutCorrections`)
 * @param observers what else to run, which takes a program of one lane
 */
export function lanesOf(
  plan: Plan,
  encoder: Pick<Encoder, "encode" | "input">,
  { mode, threads }: { readonly mode: ProgramMode; readonly threads: number },
  observers?: Observers,
): Lane[] {
  const encode = (node: Node) => encoder.encode(node);
  if (observers !== undefined) {
    const input = (value: string) => encoder.input(value);
    return [{
      program: plan.graph.nodes.flatMap((node) => [...observers.before(node, input), encode(node)]),
      threads,
    }];
  }
  if (mode === "async") {
    const split = splitThreads(plan.corrections, threads);
    return plan.lanes.map((lane) => ({
      program: laneProgram(plan, lane, encode),
      threads: split[lane.lane],
    }));
  }
  if (mode === "inline") return [{ program: inlined(plan, encode), threads }];
  return [{ program: plan.graph.nodes.map(encode), threads }];
}

function laneProgram(plan: Plan, lane: LanePlan, encode: (node: Node) => Instruction): Instruction[] {
  return lane.steps.map((step) => "run" in step ? encode(plan.graph.nodes[step.run]!) : meeting(step));
}

/** The instruction that tells another lane, or waits for it. */
export function meeting(step: { readonly signal: number } | { readonly wait: number }): Instruction {
  const number = "signal" in step ? step.signal : step.wait;
  return {
    op: "signal" in step ? "signal" : "wait",
    operands: { event: { segment: "mailbox", offset: MAILBOX_EVENTS + EVENT_BYTES * number } },
    integers: {},
    reals: {},
    over: "tokens",
    when: "always",
    barrier: false,
    awaits: 0,
  };
}

function inlined({ graph }: Plan, encode: (node: Node) => Instruction): Instruction[] {
  const makers = producers(graph);
  const index = new Map(graph.nodes.map((node, i) => [node, i]));
  const corrected = new Set(graph.nodes.map(windowOf));
  /** The window a node works for: that of its corrections, and of their linear. */
  const group = (node: Node | undefined): string | undefined => {
    if (node?.op !== "linear") return node && windowOf(node);
    return corrected.has(node.params.window) ? node.params.window : undefined;
  };
  const joined = graph.nodes.map((node, i) =>
    group(node) !== undefined && group(node) === group(graph.nodes[i + 1])
  );
  return graph.nodes.map((node, i) => {
    const first = windowOf(node) === undefined
      ? undefined
      : index.get(makers.get(node.inputs[0] ?? "") ?? node);
    const continues = first !== undefined && windowOf(graph.nodes[first]!) !== undefined &&
      joined.slice(first, i).every((join) => join);
    return { ...encode(node), barrier: !joined[i], awaits: continues ? i - first : 0 };
  });
}
