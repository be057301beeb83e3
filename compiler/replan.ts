/**
 * A plan for another machine: devices, lanes, the arena and how corrections run follow from the instructions, a machine
 * and the memory that it may take. Budgets, weights and instructions stay, so a bundle that was compiled for the CPU runs on a
 * GPU and the other way round.
 */
import type { Graph, Node } from "./ir/graph.ts";
import { type Limits, limitsOf } from "./memory.ts";
import { chooseDevices, type DeviceOptions, gpuLimit, withDevices } from "./passes/devices.ts";
import { layout } from "./passes/layout.ts";
import { schedule } from "./passes/schedule.ts";
import type { Plan } from "./plan.ts";

export interface ReplanOptions extends Omit<DeviceOptions, "limits" | "overrides"> {
  /** What the plan will run with; default: `limitsOf` the model. */
  readonly limits?: Partial<Limits>;
}

/**
 * The plan with everything anew that depends on where it runs, counted with the corrections it has.
 *
 * @throws {HcinferError} "usage": a GPU that is asked for and not there, a limit below the smallest plan, limits that the
 *   model was not made for
 */
export function replan(plan: Plan, options: ReplanOptions): Plan {
  const { profile } = options;
  const withGpu = gpuLimit(options) !== undefined;
  const limits = limitsOf(plan.model, options.limits, withGpu);
  const nodes = plan.graph.nodes.map((node): Node => {
    const { lane: _, ...placement } = node.placement;
    return { ...node, placement };
  });
  const lowered: Graph = { ...plan.graph, stage: "lowered", nodes };
  const devices = { ...options, limits };
  const placed = withDevices(lowered, chooseDevices(lowered, plan.windows, devices), devices);
  const { graph, lanes, corrections } = schedule(placed, options);
  const provenance = { ...plan.provenance, profile };
  return { ...plan, graph, lanes, memory: layout(graph), corrections, provenance };
}
