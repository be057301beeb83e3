/**
 * The last steps of a plan, and the same again for another machine: devices, lanes, the arena and how corrections run follow
 * from the instructions, a machine and the memory that it may take. Budgets, weights and instructions stay, so a bundle that
 * was compiled for the CPU runs on a GPU and the other way round.
 */
import type { Graph, Node } from "./ir/graph.ts";
import { type Limits, limitsOf } from "./memory.ts";
import { chooseDevices, type DeviceOptions, gpuLimit, withDevices } from "./passes/devices.ts";
import { layout } from "./passes/layout.ts";
import { schedule } from "./passes/schedule.ts";
import type { Plan } from "./plan.ts";

/** What follows from where nodes run. */
export type Settled = Pick<Plan, "graph" | "lanes" | "memory" | "corrections">;

/**
 * Devices for a lowered graph, and what follows from them.
 *
 * @param windows what corrections store
 * @throws {HcinferError} "usage": as `chooseDevices`
 */
export function settle(lowered: Graph, windows: Plan["windows"], options: DeviceOptions): Settled {
  const placed = withDevices(lowered, chooseDevices(lowered, windows, options), options);
  const { graph, lanes, corrections } = schedule(placed, options);
  return { graph, lanes, memory: layout(graph), corrections };
}

export interface ReplanOptions extends Omit<DeviceOptions, "limits" | "overrides"> {
  /** What the plan will run with; default: `limitsOf` the model. */
  readonly limits?: Partial<Limits>;
}

/**
 * The plan for another machine, or for another part of its memory.
 *
 * @throws {HcinferError} "usage": a GPU that is asked for and not there, a limit below the smallest plan, limits that the
 *   model was not made for
 */
export function replan(plan: Plan, options: ReplanOptions): Plan {
  const withGpu = gpuLimit({ ...options, limits: limitsOf(plan.model, options.limits) }) !== undefined;
  const limits = limitsOf(plan.model, options.limits, withGpu);
  const nodes = plan.graph.nodes.map((node): Node => {
    const { lane: _, ...placement } = node.placement;
    return { ...node, placement };
  });
  const lowered: Graph = { ...plan.graph, stage: "lowered", nodes };
  return {
    ...plan,
    ...settle(lowered, plan.windows, { ...options, limits }),
    provenance: { ...plan.provenance, profile: options.profile },
  };
}
