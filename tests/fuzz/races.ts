/**
 * Programs for threads, checked as such: no two instructions that may run at once touch the same bytes unless both only
 * read them, and what an instruction reads was last written by the node whose value it means. Which bytes an operand
 * covers is what the instruction table says, so nothing here knows how memory was laid out.
 */
import { type Graph, type Node, producers, reads } from "../../compiler/ir/graph.ts";
import { paddedOutputs } from "../../compiler/ir/naming.ts";
import { memoryOf } from "../../compiler/memory.ts";
import type { Plan } from "../../compiler/plan.ts";
import {
  type Instruction,
  type InstructionOf,
  INSTRUCTIONS,
  type Opcode,
  type Operand,
  type Segment,
} from "../../ffi/instructions.ts";
import { withoutCorrections } from "../../compiler/passes/steps.ts";
import { Encoder } from "../../runtime/executors/encode.ts";
import { type Lane, lanesOf, type ProgramMode } from "../../runtime/executors/cpu/program.ts";

const CAPACITY = 3;
const CONTEXT = 40;
/** Written by nobody in a step. */
const FIXED: ReadonlySet<Segment> = new Set<Segment>(["weights", "tables", "step"]);

/** What runs depends on the kind of a step, and on whether logits are wanted. */
export interface StepOf {
  readonly as: "prefill" | "decode";
  readonly rows: boolean;
}
export const STEPS: readonly StepOf[] = (["prefill", "decode"] as const).flatMap((as) => [
  { as, rows: true },
  { as, rows: false },
]);

/** A plan's programs, and the node of every instruction. */
export interface Programs {
  readonly graph: Graph;
  readonly lanes: readonly Lane[];
  readonly nodes: ReadonlyMap<Instruction["operands"], Node>;
}

export function programsOf(compiled: Plan, mode: ProgramMode): Programs {
  const plan = mode === "off" ? { ...compiled, graph: withoutCorrections(compiled.graph) } : compiled;
  const memory = memoryOf(plan, { capacity: CAPACITY, contextLength: CONTEXT, cachePositions: CONTEXT });
  const weight = (): Operand => ({ segment: "weights", offset: 0 });
  const encoder = new Encoder({ plan, memory, residuals: mode !== "off", weight });
  const nodes = new Map<Instruction["operands"], Node>();
  const encode = (node: Node) => {
    const instruction = encoder.encode(node);
    nodes.set(instruction.operands, node);
    return instruction;
  };
  const lanes = lanesOf(plan, { encode, input: (value) => encoder.input(value) }, { mode, threads: 4 });
  return { graph: plan.graph, lanes, nodes };
}

/** Bytes that an instruction touches. */
interface Access {
  readonly operand: string;
  readonly segment: Segment;
  /** The segment, by device where each has its own: keys and values. Arenas are laid out as one. */
  readonly memory: string;
  readonly from: number;
  readonly to: number;
  readonly writes: boolean;
}

/** An instruction that runs, and when in its lane. */
interface Moment {
  readonly lane: number;
  readonly index: number;
  /** Barriers met before it. */
  readonly slot: number;
  /** Index of what it waits for without a barrier between them. */
  readonly awaits: number | undefined;
  readonly instruction: Instruction;
  readonly accesses: readonly Access[];
}

/** The first thing that is wrong in a kind of step, or undefined. */
export function findRace(programs: Programs, step: StepOf): string | undefined {
  const moments = programs.lanes.flatMap((lane, n) => momentsOf(lane, n, step, programs.nodes));
  return conflict(moments) ?? wrongRead(programs, moments, step);
}

function momentsOf({ program }: Lane, lane: number, step: StepOf, nodes: Programs["nodes"]): Moment[] {
  let slot = 0;
  let begun = false;
  return program.flatMap((instruction, index): Moment[] => {
    const { when, over, awaits, barrier } = instruction;
    const runs = (when === "always" || when === step.as) && (over === "tokens" || step.rows);
    const moment = {
      lane,
      index,
      slot,
      awaits: awaits > 0 ? index - awaits : undefined,
      instruction,
      accesses: accessesOf(instruction, step, nodes.get(instruction.operands)),
    };
    // A barrier ends what was begun before it, also where its own instruction is left out.
    begun ||= runs;
    if (barrier && begun) {
      slot++;
      begun = false;
    }
    return runs ? [moment] : [];
  });
}

/** The instruction table's extents are C++ over integers, and JavaScript too. */
function bytesOf(instruction: Instruction, rule: { readonly bytes: string }): number {
  const integers: Readonly<Record<string, number>> = instruction.integers;
  const names = Object.keys(integers);
  const evaluate = Function("n", "Size", "packed_bytes", ...names, `return ${rule.bytes};`);
  return evaluate(CAPACITY, Number, () => 0, ...names.map((name) => integers[name]));
}

function accessesOf(instruction: Instruction, step: StepOf, node: Node | undefined): Access[] {
  const operands: Readonly<Record<string, Operand | undefined>> = instruction.operands;
  return Object.entries(INSTRUCTIONS[instruction.op].operands).flatMap(([operand, rule]): Access[] => {
    const place = operands[operand];
    // Sums of rows are made, and read, for tokens run as decode alone.
    if (place === undefined || FIXED.has(place.segment)) return [];
    if (operand.endsWith("Sparse") && step.as === "prefill") return [];
    const { segment, offset } = place;
    const to = offset + bytesOf(instruction, rule);
    const memory = segment === "cache" ? `cache of the ${node?.placement.device ?? "cpu"}` : segment;
    return [{ operand, segment, memory, from: offset, to, writes: rule.access === "write" }];
  });
}

function isSync(op: Opcode): op is "signal" | "wait" {
  return op === "signal" || op === "wait";
}

function eventOf(instruction: Instruction): number {
  return (instruction as InstructionOf<"signal">).operands.event!.offset;
}

/** Whether all of `a` is done before any of `b` begins. */
function isBefore(a: Moment, b: Moment, moments: readonly Moment[]): boolean {
  if (a.lane === b.lane) return a.slot < b.slot || b.awaits === a.index;
  // A barrier lies between `a` and a signal, and the other lane waits for that before `b`.
  return moments.some((signal) =>
    signal.instruction.op === "signal" && signal.lane === a.lane && a.slot < signal.slot &&
    moments.some((wait) =>
      wait.instruction.op === "wait" && wait.lane === b.lane && wait.index < b.index &&
      eventOf(wait.instruction) === eventOf(signal.instruction)
    )
  );
}

function conflict(moments: readonly Moment[]): string | undefined {
  const working = moments.filter((m) => !isSync(m.instruction.op));
  for (const [i, a] of working.entries()) {
    for (const b of working.slice(i)) {
      const found = a.accesses.flatMap((x, n) =>
        b.accesses.slice(a === b ? n + 1 : 0).filter((y) =>
          x.memory === y.memory && x.from < y.to && y.from < x.to && (x.writes || y.writes)
        ).map((y) => `${text(a)}.${x.operand} and ${text(b)}.${y.operand} run at once on ${x.memory}`)
      );
      if (found.length === 0 || (a !== b && (isBefore(a, b, moments) || isBefore(b, a, moments)))) continue;
      return found[0];
    }
  }
  return undefined;
}

function text({ lane, index, instruction }: Moment): string {
  return `lane ${lane}, ${index} ${instruction.op}`;
}

/** In any order that the lanes may have: without conflicts they all read the same. */
function inOrder(moments: readonly Moment[]): Moment[] {
  const order: Moment[] = [];
  const signalled = new Set<number>();
  const left = [...new Set(moments.map((m) => m.lane))].map((lane) => moments.filter((m) => m.lane === lane));
  for (let moved = true; moved;) {
    moved = false;
    for (const lane of left) {
      for (let next = lane[0]; next !== undefined; next = lane[0]) {
        if (next.instruction.op === "wait" && !signalled.has(eventOf(next.instruction))) break;
        if (next.instruction.op === "signal") signalled.add(eventOf(next.instruction));
        order.push(lane.shift()!);
        moved = true;
      }
    }
  }
  return order;
}

/** Which input of its node an operand is. */
const INPUTS: Readonly<Record<string, number>> = { b: 1, up: 1, k: 1, v: 2 };

function wrongRead(
  { graph, nodes }: Programs,
  moments: readonly Moment[],
  step: StepOf,
): string | undefined {
  const makers = producers(graph);
  /** Who wrote each word of each segment. */
  const owners = new Map<string, Node>();
  /** Where linears and deltas begin, for what reads columns of them. */
  const begins = new Map<string, number>();
  const words = ({ memory, from, to }: Access) =>
    Array.from({ length: Math.ceil((to - from) / 4) }, (_, i) => `${memory} ${from + 4 * i}`);
  for (const moment of inOrder(moments)) {
    if (isSync(moment.instruction.op)) continue;
    const node = nodes.get(moment.instruction.operands)!;
    for (const access of moment.accesses.filter((a) => !a.writes)) {
      const [, prefix = "", form] = /^(\w+?)(LowRank|Sparse)?$/.exec(access.operand)!;
      const index = INPUTS[prefix] ?? 0;
      const input = node.inputs[index]!;
      const op = form === "LowRank" ? "low_rank_up" : "sparse_sum";
      const meant = access.segment === "cache"
        ? input
        : form === undefined
        ? input
        : node.added![index]!.find((name) => makers.get(name)?.op === op)!;
      const maker = makers.get(meant)!;
      const isMeant = (owner: Node | undefined) =>
        access.segment !== "cache"
          ? owner === maker
          : owner?.op === "append" && node.op === "attend" && owner.params.layer === node.params.layer;
      if (!reads(node).includes(meant) || !words(access).every((word) => isMeant(owners.get(word)))) {
        return `${text(moment)}.${access.operand} does not read ${meant}`;
      }
      const base = makers.get(input);
      if (access.segment !== "arena" || base?.op !== "linear") continue;
      const column = paddedOutputs(base.params.weights).firstColumn[
        base.outputs.findIndex((v) => v.name === input)
      ]!;
      if (access.from !== begins.get(maker.outputs[0]!.name)! + 4 * column) {
        return `${text(moment)}.${access.operand} reads other columns than ${input}'s`;
      }
    }
    for (const access of moment.accesses.filter((a) => a.writes)) {
      for (const word of words(access)) owners.set(word, node);
      if (access.operand === "y" || access.operand === "delta") {
        begins.set(node.outputs[0]!.name, access.from);
      }
    }
  }
  const isWritten = [...owners.keys()].some((word) => word.startsWith("logits"));
  return isWritten === step.rows ? undefined : "nothing writes the logits that are wanted";
}
