/**
 * schedule: lanes, and the events in which they meet.
 *
 * Needs: stage "compensated", a machine profile.
 * Guarantees: stage "scheduled". Corrections are on the lane "compensation", everything else on "backbone", both in
 *   graph order. Window i has two events: 2i is signalled right after its fork is made and waited for before its
 *   corrections, 2i + 1 is signalled after them and waited for before its merge. The lanes cannot deadlock, and every
 *   value is made before it is read (`verifyLanes`). The default mode of corrections has its cause from the cost model.
 * Does not: reorder nodes, or fix the mode: the same lanes run asynchronously, in line (in graph order) or without
 *   corrections, with the same numbers in the first two.
 */
import { type Graph, type Lane, type Node, producers } from "../ir/graph.ts";
import { CORRECTION_OPS } from "../ir/ops.ts";
import { verify } from "../ir/verify.ts";
import type { LanePlan, LaneStep, Plan } from "../plan.ts";
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
  readonly corrections: Plan["corrections"];
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

function makeLanes(graph: Graph): LanePlan[] {
  const makers = producers(graph);
  /** Windows in graph order; an event is a window's index twice, plus one for its merge. */
  const windows: string[] = [];
  const forks = new Map<Node | undefined, number[]>();
  for (const node of graph.nodes) {
    if (node.op !== "low_rank" && node.op !== "sparse_residual") continue;
    if (windows.includes(node.params.window)) continue;
    const maker = makers.get(node.inputs[0] ?? "");
    forks.set(maker, [...forks.get(maker) ?? [], 2 * windows.length]);
    windows.push(node.params.window);
  }
  const backbone: LaneStep[] = (forks.get(undefined) ?? []).map((signal) => ({ signal }));
  const compensation: LaneStep[] = [];
  let open: string | undefined;
  const close = () => {
    if (open !== undefined) compensation.push({ signal: 2 * windows.indexOf(open) + 1 });
    open = undefined;
  };
  graph.nodes.forEach((node, run) => {
    if (node.op === "low_rank" || node.op === "sparse_residual") {
      if (open !== node.params.window) {
        close();
        open = node.params.window;
        compensation.push({ wait: 2 * windows.indexOf(open) });
      }
      compensation.push({ run });
      return;
    }
    if (node.op === "merge") backbone.push({ wait: 2 * windows.indexOf(node.params.window) + 1 });
    backbone.push({ run });
    for (const signal of forks.get(node) ?? []) backbone.push({ signal });
  });
  close();
  const device = graph.nodes.find((n) => n.placement.lane === "backbone")?.placement.device ?? "cpu";
  const lanes: LanePlan[] = [{ lane: "backbone", device, steps: backbone }];
  if (compensation.length > 0) lanes.push({ lane: "compensation", device: "cpu", steps: compensation });
  return lanes;
}

/**
 * Walks the lanes and checks that each node runs once, each event is signalled once, nothing waits for ever, and each value
 * has been made, in this lane or before an event this lane has waited for, when it is read.
 *
 * @throws DeadlockError or Error, either a bug of the scheduler or an edited plan.
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
          for (const name of node.inputs) {
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

function chooseMode(graph: Graph, lanes: readonly LanePlan[], options: ScheduleOptions): Plan["corrections"] {
  const { profile, threads = profile.cpu.cores } = options;
  if (lanes.length < 2) return { mode: "off", cause: "no window has a correction" };
  if (new Set(lanes.map((l) => l.device)).size > 1) {
    return { mode: "async", cause: "backbone and corrections run on different devices" };
  }
  if (threads < 2) return { mode: "inline", cause: "one thread runs both lanes" };
  const inline = serialTimeline(graph, "inline", { profile, threads }).microseconds;
  let best = Infinity;
  let own = 1;
  for (let compensationThreads = 1; compensationThreads < threads; compensationThreads++) {
    const { microseconds } = asyncTimeline(graph, lanes, { profile, threads, compensationThreads });
    if (microseconds < best) [best, own] = [microseconds, compensationThreads];
  }
  const predicted = `predicted ${milliseconds(inline)} ms a token in line, ` +
    `${milliseconds(best)} ms asynchronously with ${own} of ${threads} threads for corrections`;
  return best < inline
    ? { mode: "async", cause: predicted }
    : { mode: "inline", cause: `${predicted}: both lanes share one memory` };
}

function milliseconds(microseconds: number): string {
  return (microseconds / 1000).toPrecision(3);
}
