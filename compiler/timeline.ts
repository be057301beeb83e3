/**
 * A step of one decoded token on paper: walks lanes with a clock. The null executor is this walk, and `inspect` and the
 * choice between asynchronous and in-line corrections read it. Nothing here was measured.
 */
import { costs, predict, round, type Share } from "./cost.ts";
import type { Device, Graph, Lane } from "./ir/graph.ts";
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

/** Both lanes at once. @throws DeadlockError */
export function asyncTimeline(graph: Graph, lanes: readonly LanePlan[], options: TimelineOptions): Timeline {
  const { profile, threads = profile.cpu.cores } = options;
  const devices = lanes.map((lane) => devicesOf(graph, lane));
  const shares = lanes.map((lane) =>
    laneShare(lane, devices, profile, threads, options.compensationThreads ?? 1)
  );
  const nodeCosts = costs(graph);
  const latency = (profile.gpu?.linkLatency ?? 0) * (new Set(devices.flat()).size > 1 ? 1 : 0);
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
          const stall = Math.max(0, ready + latency - at.clock);
          at.clock += stall;
          at.stall += stall;
          at.stalled += stall;
        } else if ("signal" in step) {
          signalled.set(step.signal, at.clock);
        } else {
          const cost = nodeCosts[step.run];
          if (cost === undefined) {
            throw new Error(`lane ${lane.lane} runs node ${step.run}, which does not exist`);
          }
          const time = predict(cost, profile, graph.nodes[step.run]?.placement.device ?? "cpu", share);
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
  if (devices.filter((own) => own.includes("cpu")).length < 2) return { threads };
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
  let clock = 0;
  costs(graph).forEach((cost, node) => {
    const { device = "cpu", lane = "backbone" } = graph.nodes[node]?.placement ?? {};
    if (mode === "off" && lane === "compensation") return;
    const time = predict(cost, profile, device, { threads });
    devices.add(device);
    steps.push({ lane, node, start: round(clock), end: round(clock + time), stall: 0 });
    clock += time;
  });
  const microseconds = round(clock);
  return {
    mode,
    steps,
    lanes: [{ lane: "backbone", devices: [...devices], threads, busy: microseconds, stalled: 0 }],
    microseconds,
  };
}

/** The timeline of a plan in a mode, with the plan's split of threads. */
export function timelineOf(
  plan: { readonly graph: Graph; readonly lanes: readonly LanePlan[]; readonly corrections: CorrectionPlan },
  mode: Timeline["mode"],
  options: { readonly profile: MachineProfile; readonly threads: number },
): Timeline {
  if (mode !== "async") return serialTimeline(plan.graph, mode, options);
  const compensationThreads = splitThreads(plan.corrections, options.threads).compensation;
  return asyncTimeline(plan.graph, plan.lanes, { ...options, compensationThreads });
}
