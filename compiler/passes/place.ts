/**
 * place: a device for every node.
 *
 * Needs: stage "quantized" (bytes follow from formats), a machine profile.
 * Guarantees: stage "placed". Every node has a device and the cause of that choice, its bytes and its predicted
 *   time. A user's override is kept as it is; without one, what fits the GPU's memory is there (devices.ts). What does
 *   not fit the memory that was allowed is an error.
 * Does not: know how large corrections will be. It counts the most they may be, so what is placed fits; `replan`
 *   (../replan.ts) counts what they are.
 */
import { HcinferError } from "../errors.ts";
import type { Device, Graph, Node, WindowBudget } from "../ir/graph.ts";
import { verify } from "../ir/verify.ts";
import type { Plan } from "../plan.ts";
import { factorBytesRead, residualShape } from "../weights/correction.ts";
import { inventory, type Matrix } from "../weights/inventory.ts";
import type { BudgetOptions } from "./budget.ts";
import { compensate } from "./compensate.ts";
import { chooseDevices, type DeviceOptions, gpuLimit, overrideOf, paths, withDevices } from "./devices.ts";
import { lower } from "./lower.ts";

/** What is known of corrections before their budgets are; nothing: there are none. */
type Corrections = Pick<BudgetOptions, "correct" | "budget" | "residualWidth" | "factorDType" | "maxRank">;

export interface PlaceOptions extends DeviceOptions {
  readonly corrections?: Corrections;
  /** Bytes of weights each device may hold; absent: no limit. */
  readonly memory?: { readonly [D in Device]?: number };
}

export function place(graph: Graph, options: PlaceOptions): Graph {
  checkOverrides(graph, options);
  const draft = gpuLimit(options) === undefined ? { graph, windows: [] } : draftOf(graph, options);
  const placed = withDevices(graph, chooseDevices(draft.graph, draft.windows, options), options);
  checkMemory(placed.nodes, options);
  const result: Graph = { ...placed, stage: "placed" };
  verify(result);
  return result;
}

const NO_CORRECTIONS: Corrections = {
  correct: "none",
  budget: { kind: "bytes", share: 0 },
  residualWidth: 4,
  factorDType: "i8",
  maxRank: 0,
};

/** The instructions of a graph with the largest corrections there may be: a GPU's memory is counted by these. */
function draftOf(graph: Graph, options: PlaceOptions): Pick<Plan, "graph" | "windows"> {
  const { corrections = NO_CORRECTIONS } = options;
  const matrices = inventory(graph).matrices.filter((m) => m.window !== undefined);
  const budgets = matrices.map((matrix) => mostOf(matrix, corrections));
  const nodes = graph.nodes.map((node): Node => ({
    ...node,
    placement: { ...node.placement, device: "cpu" },
  }));
  const budgeted: Graph = { ...graph, stage: "budgeted", nodes, budgets };
  const { residualWidth, factorDType } = corrections;
  return {
    graph: lower(compensate(budgeted, { ...options, residualWidth, factorDType }), options),
    windows: matrices.map(({ window = "", inputs, rows }, i) => {
      const { rank, channels } = budgets[i]!;
      const factors = { dtype: factorDType, maxRank: rank };
      const residual = inputs * residualShape(residualWidth, rows).rowBytes + 4 * (2 * inputs + rows);
      return {
        window,
        inputs,
        outputs: rows,
        errorEnergy: 0,
        residual: channels > 0 ? { width: residualWidth, bytes: residual } : null,
        factors: rank > 0
          ? { ...factors, bytes: factorBytesRead(factorDType, inputs, rows, rank) + 4 * rank }
          : null,
      };
    }),
  };
}

function mostOf(
  { window = "", inputs, rows, format }: Matrix,
  { correct, budget, maxRank }: Corrections,
): WindowBudget {
  const asked = { rank: maxRank, channels: inputs, ...budget };
  const hasRows = (correct === "sparse" || correct === "both") && format?.kind !== "bf16";
  return {
    window,
    rank: correct === "low_rank" || correct === "both" ? Math.min(asked.rank, inputs, rows) : 0,
    channels: hasRows ? Math.min(asked.channels, inputs) : 0,
    cause: "the most there may be",
  };
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
