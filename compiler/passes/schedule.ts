/**
 * schedule: lanes, and the events in which they meet.
 *
 * Needs: stage "lowered", a machine profile.
 * Guarantees: stage "scheduled". Corrections are on the lane "compensation", everything else on "backbone", both in
 *   graph order. Window i has two events: 2i is signalled right after its fork is made and waited for before its
 *   corrections, 2i + 1 is signalled after them and waited for before the first node that adds one of its deltas. The
 *   lanes cannot deadlock, and every value is made before it is read (`verifyLanes`). The default mode of
 *   corrections and the split of threads come from the cost model, with their cause.
 * Does not: reorder nodes, or fix the mode: the same lanes run asynchronously, in line (in graph order) or without
 *   corrections, with the same numbers in the first two.
 */
import { type Graph, type Lane, type Node, producers, reads } from "../ir/graph.ts";
import { CORRECTION_OPS } from "../ir/ops.ts";
import { verify } from "../ir/verify.ts";
import type { CorrectionPlan, LanePlan, LaneStep } from "../plan.ts";
import type { MachineProfile } from "../profile.ts";
import { asyncTimeline, DeadlockError, serialTimeline } from "../timeline.ts";

export interface ScheduleOptions {
  readonly profile: MachineProfile;
  /** Threads of the CPU that predictions assume; default: all cores. */
  readonly threads?: number;
}

export interface Schedule {
  readonly graph: Graph;
  readonly lanes: LanePlan[];
  readonly corrections: CorrectionPlan;
}

export function schedule(graph: Graph, options: ScheduleOptions): Schedule {
  const nodes = graph.nodes.map((node): Node => {
    const lane: Lane = CORRECTION_OPS.has(node.op) ? "compensation" : "backbone";
    return { ...node, placement: { ...node.placement, lane } };
  });
  const result: Graph = { ...graph, stage: "scheduled", nodes };
  verify(result);
  const lanes = makeLanes(result);
  verifyLanes(result, lanes);
  return { graph: result, lanes, corrections: chooseMode(result, lanes, options) };
}

/** The window of a correction's instruction. */
export function windowOf(node: Node): string | undefined {
  return CORRECTION_OPS.has(node.op) && "window" in node.params ? node.params.window : undefined;
}

/** A window's corrections, from what they read to who reads them. */
export interface Flight {
  /** Nodes of the graph, by index, in order. */
  readonly corrections: readonly number[];
  /** The node that makes what they read. */
  readonly fork: number;
  /** The first node that adds one of their deltas; the graph's end where none does. */
  readonly merge: number;
}

/** All windows that have corrections, in graph order. */
export function flights(graph: Graph): ReadonlyMap<string, Flight> {
  const makers = producers(graph);
  const index = new Map(graph.nodes.map((node, i) => [node, i]));
  const found = new Map<string, { corrections: number[]; fork: number; merge: number }>();
  graph.nodes.forEach((node, i) => {
    const window = windowOf(node);
    if (window !== undefined) {
      const flight = found.get(window) ?? { corrections: [], fork: -1, merge: graph.nodes.length };
      found.set(window, flight);
      flight.corrections.push(i);
      const maker = makers.get(node.inputs[0] ?? "");
      if (maker !== undefined && windowOf(maker) === undefined) flight.fork = index.get(maker) ?? -1;
      return;
    }
    for (const name of node.added?.flat() ?? []) {
      const flight = found.get(windowOf(makers.get(name) ?? node) ?? "");
      if (flight !== undefined) flight.merge = Math.min(flight.merge, i);
    }
  });
  return found;
}

/** The lanes of a lowered graph. They follow from it alone: a bundle whose lanes are others is refused. */
export function makeLanes(graph: Graph): LanePlan[] {
  const backbone: LaneStep[] = [];
  const compensation: LaneStep[] = [];
  const signals = new Map<number, number[]>();
  const waits = new Map<number, number[]>();
  const add = (map: Map<number, number[]>, node: number, event: number) =>
    map.set(node, [...map.get(node) ?? [], event]);
  [...flights(graph).values()].forEach(({ corrections, fork, merge }, window) => {
    add(signals, fork, 2 * window);
    add(waits, merge, 2 * window + 1);
    compensation.push({ wait: 2 * window }, ...corrections.map((run) => ({ run })), {
      signal: 2 * window + 1,
    });
  });
  backbone.push(...(signals.get(-1) ?? []).map((signal) => ({ signal })));
  graph.nodes.forEach((node, run) => {
    if (windowOf(node) !== undefined) return;
    backbone.push(...(waits.get(run) ?? []).map((wait) => ({ wait })));
    backbone.push({ run });
    backbone.push(...(signals.get(run) ?? []).map((signal) => ({ signal })));
  });
  const lanes: LanePlan[] = [{ lane: "backbone", steps: backbone }];
  if (compensation.length > 0) lanes.push({ lane: "compensation", steps: compensation });
  return lanes;
}

/**
 * Walks the lanes and checks that each node runs once, each event is signalled once, nothing waits for ever, and each value
 * has been made, in this lane or before an event this lane has waited for, when it is read.
 *
 * @throws DeadlockError or Error: a bug of the scheduler
 */
export function verifyLanes(graph: Graph, lanes: readonly LanePlan[]): void {
  /** How far each lane is known to have come, by each lane; and what a signal publishes of that. */
  const known = lanes.map(() => lanes.map(() => -1));
  const published = new Map<number, readonly number[]>();
  const made = new Map<string, readonly [lane: number, step: number]>();
  const ran = new Set<number>();
  const next = lanes.map(() => 0);
  const inputs = new Set(graph.inputs.map((v) => v.name));
  for (let moved = true; moved;) {
    moved = false;
    lanes.forEach((plan, lane) => {
      const clock = known[lane] ?? [];
      for (let at = next[lane] ?? 0; at < plan.steps.length; at++, next[lane] = at, moved = true) {
        const step = plan.steps[at];
        if (step === undefined) return;
        clock[lane] = at;
        if ("wait" in step) {
          const event = published.get(step.wait);
          if (event === undefined) return;
          event.forEach((reached, i) => clock[i] = Math.max(clock[i] ?? -1, reached));
        } else if ("signal" in step) {
          if (published.has(step.signal)) throw new Error(`event ${step.signal} is signalled twice`);
          published.set(step.signal, [...clock]);
        } else {
          const node = graph.nodes[step.run];
          if (node === undefined) {
            throw new Error(`lane ${plan.lane} runs node ${step.run}, which does not exist`);
          }
          if (ran.has(step.run)) throw new Error(`node ${step.run} runs twice`);
          ran.add(step.run);
          for (const name of reads(node)) {
            if (inputs.has(name)) continue;
            const [maker, when] = made.get(name) ?? [lane, Infinity];
            if (when > (clock[maker] ?? -1)) {
              throw new Error(
                `lane ${plan.lane} reads ${name} in node ${step.run} before it is known to be made`,
              );
            }
          }
          for (const value of node.outputs) made.set(value.name, [lane, at]);
        }
      }
    });
  }
  lanes.forEach((plan, lane) => {
    const step = plan.steps[next[lane] ?? 0];
    if (step !== undefined) {
      throw new DeadlockError(
        `lane ${plan.lane} stops for ever at step ${next[lane]}: ${JSON.stringify(step)}`,
      );
    }
  });
  if (ran.size !== graph.nodes.length) {
    throw new Error(`lanes run ${ran.size} of ${graph.nodes.length} nodes`);
  }
}

function chooseMode(graph: Graph, lanes: readonly LanePlan[], options: ScheduleOptions): CorrectionPlan {
  const { profile, threads = profile.cpu.cores } = options;
  if (lanes.length < 2) {
    return { mode: "off", threads, compensationThreads: 0, cause: "no window has a correction" };
  }
  const devices = new Set(graph.nodes.map((node) => node.placement.device));
  if (devices.size > 1) {
    const cause = "backbone and corrections run on different devices";
    return { mode: "async", threads, compensationThreads: threads, cause };
  }
  if (threads < 2) {
    return { mode: "inline", threads, compensationThreads: 0, cause: "one thread runs both lanes" };
  }
  const inline = serialTimeline(graph, "inline", { profile, threads }).microseconds;
  let best = Infinity;
  let own = 1;
  for (let compensationThreads = 1; compensationThreads < threads; compensationThreads++) {
    const { microseconds } = asyncTimeline(graph, lanes, { profile, threads, compensationThreads });
    if (microseconds < best) [best, own] = [microseconds, compensationThreads];
  }
  const predicted = `predicted ${milliseconds(inline)} ms a token in line, ` +
    `${milliseconds(best)} ms asynchronously with ${own} of ${threads} threads for corrections`;
  return best < inline ? { mode: "async", threads, compensationThreads: own, cause: predicted } : {
    mode: "inline",
    threads,
    compensationThreads: own,
    cause: `${predicted}: both lanes share one memory`,
  };
}

function milliseconds(microseconds: number): string {
  return (microseconds / 1000).toPrecision(3);
}
