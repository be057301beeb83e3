/**
 * schedule: lanes, and the events in which they meet.
 *
 * Needs: stage "lowered", a machine profile.
 * Guarantees: stage "scheduled". Without a GPU, corrections are on the lane "compensation" and everything else on
 *   "backbone"; with one, the GPU's nodes are "backbone" and the CPU's "compensation", corrections and spilled layers
 *   alike. Both are in graph order. A node that makes what the other lane reads signals an event, which is waited for
 *   right before the first node that reads it; there is no wait for what an earlier wait has made sure of, and no event
 *   that nobody waits for. Events are numbered in the order of their nodes. The lanes cannot deadlock, and every value is
 *   made before it is read (`verifyLanes`). The default mode of corrections and the split of threads come from the cost
 *   model, with their cause.
 * Does not: reorder nodes, or fix the mode: the same lanes run asynchronously, in line (in graph order) or without
 *   corrections, with the same numbers in the first two.
 */
import { type Graph, laneOf, type Node, reads, usesGpu } from "../ir/graph.ts";
import { CORRECTION_OPS } from "../ir/ops.ts";
import { verify } from "../ir/verify.ts";
import type { CorrectionPlan, LanePlan, LaneStep } from "../plan.ts";
import type { MachineProfile } from "../profile.ts";
import { asyncTimeline, DeadlockError, serialTimeline } from "../timeline.ts";
import { choosePrompts } from "./prompts.ts";

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
  const withGpu = usesGpu(graph);
  const nodes = graph.nodes.map((node): Node => {
    return { ...node, placement: { ...node.placement, lane: laneOf(node, withGpu) } };
  });
  const result: Graph = { ...graph, stage: "scheduled", nodes };
  verify(result);
  const lanes = makeLanes(result);
  verifyLanes(result, lanes);
  return { graph: result, lanes, corrections: chooseMode(result, lanes, options) };
}

export { windowOf } from "../ir/graph.ts";

/** A value's maker in the other lane that a node waits for, right before it runs. */
export interface Meeting {
  readonly producer: number;
  readonly reader: number;
}

/**
 * Where lanes meet, in the order of readers. A lane runs its nodes one after the other, so who has waited for a node
 * of another lane knows that all before it are done: only a later one is waited for again.
 */
export function meetings(graph: Graph): Meeting[] {
  const withGpu = usesGpu(graph);
  const lanes = graph.nodes.map((node) => laneOf(node, withGpu));
  const makers = new Map(graph.nodes.flatMap((node, i) => node.outputs.map((v) => [v.name, i] as const)));
  /** By lane: how far it knows the other to have come. */
  const known = { backbone: -1, compensation: -1 };
  return graph.nodes.flatMap((node, reader): Meeting[] => {
    const lane = lanes[reader] ?? "backbone";
    const others = reads(node).map((name) => makers.get(name) ?? -1).filter((i) => lanes[i] !== lane);
    const producer = Math.max(-1, ...others);
    if (producer <= known[lane]) return [];
    known[lane] = producer;
    return [{ producer, reader }];
  });
}

/** Events by the node that signals them, in the order of nodes. */
export function eventsOf(graph: Graph): ReadonlyMap<number, number> {
  const producers = new Set(meetings(graph).map(({ producer }) => producer));
  return new Map([...producers].sort((a, b) => a - b).map((node, event) => [node, event]));
}

/** The lanes of a lowered graph. They follow from it alone: a bundle whose lanes are others is refused. */
export function makeLanes(graph: Graph): LanePlan[] {
  const withGpu = usesGpu(graph);
  const met = meetings(graph);
  const events = eventsOf(graph);
  const waits = new Map(met.map(({ producer, reader }) => [reader, events.get(producer)!]));
  return (["backbone", "compensation"] as const).flatMap((lane): LanePlan[] => {
    const steps = graph.nodes.flatMap((node, run): LaneStep[] => {
      if (laneOf(node, withGpu) !== lane) return [];
      const [wait, signal] = [waits.get(run), events.get(run)];
      return [
        ...wait === undefined ? [] : [{ wait }],
        { run },
        ...signal === undefined ? [] : [{ signal }],
      ];
    });
    return steps.length > 0 ? [{ lane, steps }] : [];
  });
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
  const withGpu = usesGpu(graph);
  const compensationThreads = withGpu ? threads : 0;
  const prompts = (decoded: number) => {
    const { prefill, prefillCause } = choosePrompts(graph, { profile, threads }, decoded);
    return { prefill, prefillCause };
  };
  if (!graph.nodes.some((node) => CORRECTION_OPS.has(node.op))) {
    return { mode: "off", threads, compensationThreads, cause: "no window has a correction", ...prompts(0) };
  }
  if (withGpu) {
    const cause = "the backbone is on the GPU, corrections are on the CPU";
    const { microseconds } = asyncTimeline(graph, lanes, { profile, threads });
    return { mode: "async", threads, compensationThreads, cause, ...prompts(microseconds) };
  }
  if (threads < 2) {
    const cause = "one thread runs both lanes";
    return { mode: "inline", threads, compensationThreads, cause, ...prompts(0) };
  }
  const inline = serialTimeline(graph, "inline", { profile, threads }).microseconds;
  let best = Infinity;
  let own = 1;
  for (let aside = 1; aside < threads; aside++) {
    const { microseconds } = asyncTimeline(graph, lanes, { profile, threads, compensationThreads: aside });
    if (microseconds < best) [best, own] = [microseconds, aside];
  }
  const predicted = `predicted ${milliseconds(inline)} ms a token in line, ` +
    `${milliseconds(best)} ms asynchronously with ${own} of ${threads} threads for corrections`;
  return {
    mode: best < inline ? "async" : "inline",
    threads,
    compensationThreads: own,
    cause: best < inline ? predicted : `${predicted}: both lanes share one memory`,
    ...prompts(0),
  };
}

function milliseconds(microseconds: number): string {
  return `${Number((microseconds / 1000).toPrecision(3))}`;
}
