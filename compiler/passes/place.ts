/**
 * place: a device for every node.
 *
 * Needs: stage "quantized" (bytes follow from formats), a machine profile.
 * Guarantees: stage "placed". Every node has a device and the cause of that choice, its bytes and its predicted
 *   time. A user's override is kept as it is; without one, what fits the GPU's memory is there (devices.ts). What does
 *   not fit the memory that was allowed is an error.
 * Does not: know corrections, which are made later and take little: `settle` (../replan.ts) counts again with them.
 */
import { HcinferError } from "../errors.ts";
import type { Device, Graph, Node } from "../ir/graph.ts";
import { verify } from "../ir/verify.ts";
import { compensate } from "./compensate.ts";
import { chooseDevices, type DeviceOptions, gpuLimit, overrideOf, paths, withDevices } from "./devices.ts";
import { lower } from "./lower.ts";

export interface PlaceOptions extends DeviceOptions {
  /** Bytes of weights each device may hold; absent: no limit. */
  readonly memory?: { readonly [D in Device]?: number };
}

export function place(graph: Graph, options: PlaceOptions): Graph {
  checkOverrides(graph, options);
  const placed = withDevices(graph, chooseDevices(draftOf(graph, options), [], options), options);
  checkMemory(placed.nodes, options);
  const result: Graph = { ...placed, stage: "placed" };
  verify(result);
  return result;
}

/** The instructions of a graph without corrections; where a GPU is to be filled, its memory follows from these. */
function draftOf(graph: Graph, options: PlaceOptions): Graph {
  if (gpuLimit(options) === undefined) return graph;
  const nodes = graph.nodes.map((node): Node => ({
    ...node,
    placement: { ...node.placement, device: "cpu" },
  }));
  const budgets = nodes.flatMap((node) =>
    node.op === "linear" && node.params.window !== undefined
      ? [{ window: node.params.window, rank: 0, channels: 0, cause: "a draft" }]
      : []
  );
  const sizes = { residualWidth: 4, factorDType: "i8" } as const;
  const budgeted: Graph = { ...graph, stage: "budgeted", nodes, budgets };
  return lower(compensate(budgeted, { ...options, ...sizes }), options);
}

/** @throws {HcinferError} "usage": an override that names nothing, or a GPU that is not there */
function checkOverrides(graph: Graph, options: PlaceOptions): void {
  const { overrides = new Map<string, Device>() } = options;
  const used = new Set(graph.nodes.map((node) => overrideOf(node, overrides)));
  const unused = [...overrides.keys()].filter((key) => !used.has(key));
  if (unused.length > 0) {
    throw new HcinferError(
      "usage",
      `a device was given for ${unused.join(", ")}, but the model has no such node`,
    );
  }
  const onGpu = [...overrides].find(([, device]) => device === "gpu");
  if (onGpu !== undefined && gpuLimit(options) === undefined) {
    throw new HcinferError(
      "usage",
      `the override of ${onGpu[0]} asks for the GPU, which is not used; use "cpu"`,
    );
  }
}

function checkMemory(nodes: readonly Node[], options: PlaceOptions): void {
  for (const device of ["cpu", "gpu"] as const) {
    const limit = options.memory?.[device];
    if (limit === undefined) continue;
    const stored = new Map<string, number>();
    for (const node of nodes) {
      if (node.placement.device !== device) continue;
      // A tied head and the embedding are one packed weight.
      stored.set(paths(node).at(-1) ?? node.outputs[0]?.name ?? "", node.placement.bytesStored ?? 0);
    }
    const total = [...stored.values()].reduce((a, b) => a + b, 0);
    if (total > limit) {
      throw new HcinferError(
        "usage",
        `the weights on the ${device} need ${total} bytes and ${limit} are allowed: ` +
          `choose fewer bits, or allow more memory`,
      );
    }
  }
}
