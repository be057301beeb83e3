/**
 * A step of one decoded token on paper: walks lanes with a clock. The null executor is this walk, and `inspect` and the
 * choice between asynchronous and in-line corrections read it. Nothing here was measured.
 */
import { HcinferError } from "./errors.ts";
import { costs, predict, round, type Share, transferTime } from "./cost.ts";
import {
  type Device,
  type Graph,
  type Lane,
  producers,
  reads,
  usesGpu,
  values,
  windowOf,
} from "./ir/graph.ts";
import { CORRECTION_OPS } from "./ir/ops.ts";
import { arraysOf } from "./ir/types.ts";
import { type CorrectionPlan, type LanePlan, splitThreads } from "./plan.ts";
import { type MachineProfile, readBandwidth } from "./profile.ts";

export interface TraceStep {
  readonly lane: Lane;
  /** Index of the node in the graph. */
  readonly node: number;
  /** Microseconds since the step began. */
  readonly start: number;
  readonly end: number;
  /** Microseconds the lane waited for another right before this node. */
  readonly stall: number;
}

export interface LaneTotal {
  readonly lane: Lane;
  /** The devices its nodes run on. */
  readonly devices: readonly Device[];
  readonly threads: number;
  readonly busy: number;
  readonly stalled: number;
}

export interface Timeline {
  readonly mode: "async" | "inline" | "off";
  readonly steps: readonly TraceStep[];
  readonly lanes: readonly LaneTotal[];
  /** Microseconds of corrections, and those of them that nobody waited for. */
  readonly corrections: { readonly busy: number; readonly hidden: number };
  /** Predicted microseconds of the whole step. */
  readonly microseconds: number;
}

/** Lanes that wait for each other, or for an event that nobody signals. */
export class DeadlockError extends Error {
  override readonly name = "DeadlockError";
}

export interface TimelineOptions {
  readonly profile: MachineProfile;
  /** Threads of the CPU in all; default: all cores. */
  readonly threads?: number;
  /** Of those, threads of the compensation lane where the backbone shares the CPU with it (async). */
  readonly compensationThreads?: number;
}

/** Both lanes at once. A value of the other device is there once it has crossed the link. @throws DeadlockError */
export function asyncTimeline(graph: Graph, lanes: readonly LanePlan[], options: TimelineOptions): Timeline {
  const { profile, threads = profile.cpu.cores } = options;
  const devices = lanes.map((lane) => devicesOf(graph, lane));
  const shares = lanes.map((lane) =>
    laneShare(lane, devices, profile, threads, options.compensationThreads ?? 1)
  );
  const nodeCosts = costs(graph);
  const crossings = crossingsOf(graph);
  /** When each node was done. */
  const ends = new Map<number, number>();
  const signalled = new Map<number, number>();
  const state = lanes.map(() => ({ next: 0, clock: 0, busy: 0, stalled: 0, stall: 0 }));
  const steps: TraceStep[] = [];
  for (let moved = true; moved;) {
    moved = false;
    lanes.forEach((lane, i) => {
      const at = state[i];
      const share = shares[i];
      if (at === undefined || share === undefined) return;
      for (let step = lane.steps[at.next]; step !== undefined; step = lane.steps[at.next]) {
        if ("wait" in step) {
          const ready = signalled.get(step.wait);
          if (ready === undefined) return;
          stallUntil(at, ready);
        } else if ("signal" in step) {
          signalled.set(step.signal, at.clock);
        } else {
          const cost = nodeCosts[step.run];
          if (cost === undefined) {
            throw new Error(`lane ${lane.lane} runs node ${step.run}, which does not exist`);
          }
          const { makers, bytes } = crossings[step.run] ?? { makers: [], bytes: 0 };
          for (const maker of makers) {
            stallUntil(at, (ends.get(maker) ?? 0) + transferTime(profile, bytes));
          }
          const node = graph.nodes[step.run];
          const time = predict(cost, profile, node?.placement.device ?? "cpu", share);
          steps.push({
            lane: lane.lane,
            node: step.run,
            start: round(at.clock),
            end: round(at.clock + time),
            stall: round(at.stall),
          });
          at.clock += time;
          at.busy += time;
          at.stall = 0;
          ends.set(step.run, at.clock);
        }
        at.next++;
        moved = true;
      }
    });
  }
  lanes.forEach((lane, i) => {
    const step = lane.steps[state[i]?.next ?? 0];
    if (step !== undefined && "wait" in step) {
      throw new DeadlockError(`lane ${lane.lane} waits for event ${step.wait}, which is never signalled`);
    }
  });
  return {
    mode: "async",
    corrections: { busy: round(correctionTime(graph, steps)), hidden: round(hiddenTime(graph, steps)) },
    steps: steps.sort((a, b) => a.start - b.start),
    lanes: lanes.map((lane, i) => ({
      lane: lane.lane,
      devices: devices[i] ?? [],
      threads: shares[i]?.threads ?? 0,
      busy: round(state[i]?.busy ?? 0),
      stalled: round(state[i]?.stalled ?? 0),
    })),
    microseconds: round(Math.max(0, ...state.map((s) => s.clock))),
  };
}

function stallUntil(at: { clock: number; stall: number; stalled: number }, ready: number): void {
  const stall = Math.max(0, ready - at.clock);
  at.clock += stall;
  at.stall += stall;
  at.stalled += stall;
}

function correctionTime(graph: Graph, steps: readonly TraceStep[]): number {
  return steps.filter(({ node }) => CORRECTION_OPS.has(graph.nodes[node]!.op))
    .reduce((sum, { start, end }) => sum + end - start, 0);
}

/**
 * Of each window whose linear is on another lane than its corrections: their time, less what the first who adds them
 * waited for.
 */
function hiddenTime(graph: Graph, steps: readonly TraceStep[]): number {
  const makers = producers(graph);
  const linears = new Map(
    graph.nodes.flatMap((n) => n.op === "linear" ? [[n.params.window, n.placement.lane] as const] : []),
  );
  const times = new Map<string, number>();
  const stalls = new Map<string, number>();
  for (const { node: index, start, end, stall } of steps) {
    const node = graph.nodes[index]!;
    const window = windowOf(node);
    if (window !== undefined && linears.get(window) !== node.placement.lane) {
      times.set(window, (times.get(window) ?? 0) + end - start);
    }
    for (const delta of node.added?.flat() ?? []) {
      const maker = makers.get(delta);
      const added = maker && windowOf(maker);
      if (added !== undefined && !stalls.has(added)) stalls.set(added, stall);
    }
  }
  return [...times].reduce((sum, [window, time]) => sum + Math.max(0, time - (stalls.get(window) ?? 0)), 0);
}

/** What a node reads that another device has made: by whom, and how many bytes of one token. */
interface Crossing {
  readonly makers: readonly number[];
  readonly bytes: number;
}

function crossingsOf(graph: Graph): readonly Crossing[] {
  const types = values(graph);
  const makers = producers(graph);
  const index = new Map(graph.nodes.map((node, i) => [node, i]));
  return graph.nodes.map((node): Crossing => {
    const names = [...new Set(reads(node))].filter((name) => {
      const maker = makers.get(name);
      return maker !== undefined && maker.placement.device !== node.placement.device;
    });
    return {
      makers: [...new Set(names.map((name) => index.get(makers.get(name)!)!))],
      bytes: names.reduce(
        (sum, name) => sum + Object.values(arraysOf(types.get(name)!.type)).reduce((a, b) => a + b, 0),
        0,
      ),
    };
  });
}

/** The devices of a lane's nodes. */
function devicesOf(graph: Graph, { steps }: LanePlan): Device[] {
  const found = steps.map((step) => "run" in step ? graph.nodes[step.run]?.placement.device : undefined);
  return [...new Set(found.filter((device) => device !== undefined))];
}

/** Lanes on the CPU share its threads and, by threads, its bandwidth. */
function laneShare(
  lane: LanePlan,
  devices: readonly (readonly Device[])[],
  profile: MachineProfile,
  threads: number,
  compensationThreads: number,
): Share {
  if (devices.some((own) => own.includes("gpu"))) return { threads: lane.lane === "backbone" ? 0 : threads };
  if (devices.length < 2) return { threads };
  const own = Math.max(1, lane.lane === "compensation" ? compensationThreads : threads - compensationThreads);
  const bandwidth = Math.min(
    readBandwidth(profile.cpu, own),
    readBandwidth(profile.cpu, threads) * own / threads,
  );
  return { threads: own, bandwidth };
}

/** One lane, the nodes in graph order; `off` leaves the corrections out. */
export function serialTimeline(graph: Graph, mode: "inline" | "off", options: TimelineOptions): Timeline {
  const { profile, threads = profile.cpu.cores } = options;
  const steps: TraceStep[] = [];
  const devices = new Set<Device>();
  const crossings = crossingsOf(graph);
  let clock = 0;
  costs(graph).forEach((cost, node) => {
    const { op, placement: { device = "cpu", lane = "backbone" } } = graph.nodes[node]!;
    if (mode === "off" && CORRECTION_OPS.has(op)) return;
    const { makers, bytes } = crossings[node] ?? { makers: [], bytes: 0 };
    const crossing = makers.some((maker) => mode === "inline" || !CORRECTION_OPS.has(graph.nodes[maker]!.op));
    if (crossing) clock += transferTime(profile, bytes);
    const time = predict(cost, profile, device, { threads });
    devices.add(device);
    steps.push({ lane, node, start: round(clock), end: round(clock + time), stall: 0 });
    clock += time;
  });
  const microseconds = round(clock);
  return {
    mode,
    corrections: { busy: round(correctionTime(graph, steps)), hidden: 0 },
    steps,
    lanes: [{ lane: "backbone", devices: [...devices], threads, busy: microseconds, stalled: 0 }],
    microseconds,
  };
}

/**
 * The timeline of a plan in a mode, with the plan's split of threads.
 *
 * @throws {HcinferError} "usage": a plan with nodes on a GPU, on a machine without one
 */
export function timelineOf(
  plan: { readonly graph: Graph; readonly lanes: readonly LanePlan[]; readonly corrections: CorrectionPlan },
  mode: Timeline["mode"],
  options: { readonly profile: MachineProfile; readonly threads: number },
): Timeline {
  if (usesGpu(plan.graph) && options.profile.gpu === undefined) {
    throw new HcinferError(
      "usage",
      `the plan has nodes on a GPU, and the machine ${options.profile.name} has none: plan it anew for that machine`,
    );
  }
  if (mode !== "async") return serialTimeline(plan.graph, mode, options);
  const compensationThreads = splitThreads(plan.corrections, options.threads).compensation;
  return asyncTimeline(plan.graph, plan.lanes, { ...options, compensationThreads });
}
