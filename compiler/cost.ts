/**
 * What a node costs in a decode step of one token: bytes, multiply-adds and, on a machine's profile, microseconds. Weights
 * are read once and nothing is reused between steps, so most nodes are bound by bytes. Everything here is a prediction.
 */
import type { Graph, Node, NodeOf, Placement } from "./ir/graph.ts";
import { values } from "./ir/graph.ts";
import { paddedOutputs } from "./ir/naming.ts";
import type { Op } from "./ir/ops.ts";
import { elementsPerToken, type TensorType } from "./ir/types.ts";
import { fixed } from "./ir/infer.ts";
import { type MachineProfile, readBandwidth } from "./profile.ts";
import {
  type FactorDType,
  factorStride,
  residualBytesRead,
  residualShape,
  type ResidualWidth,
} from "./weights/correction.ts";
import { packedShape, type WeightFormat } from "./weights/format.ts";

export interface Cost {
  /** Bytes of weights, factors or cache read. */
  readonly bytesRead: number;
  /** Bytes kept in memory for the node: its weights, the whole residual. */
  readonly bytesStored: number;
  /** Multiply-adds, and the arithmetic they use. */
  readonly operations: number;
  readonly arithmetic: "int8" | "fp32" | "attention";
  /** Whether bytes are rows chosen here and there, and not read in order. */
  readonly isGathered?: true;
  /** Whether it is an instruction of the step: views and merges are not. */
  readonly instructions: 0 | 1;
}

/** Cached positions that attention reads in a predicted step. */
export const PREDICTED_CONTEXT = 256;

type CostRule<P extends Op> = (node: NodeOf<P>, inputs: readonly TensorType[]) => Cost;

const BF16: WeightFormat = { kind: "bf16" };

/** Width of the first input per token. */
function width(inputs: readonly TensorType[]): number {
  return inputs[0] === undefined ? 0 : elementsPerToken(inputs[0]);
}

/** Elementwise work over the first input, plus a vector of f32 weights. */
function elementwise(inputs: readonly TensorType[], perElement: number, weightBytes = 0): Cost {
  return {
    instructions: 1,
    bytesRead: weightBytes,
    bytesStored: weightBytes,
    operations: perElement * width(inputs),
    arithmetic: "fp32",
  };
}

/** Attention over `PREDICTED_CONTEXT` cached positions, keys and values in f16. */
function attention(queryWidth: number, keyWidth: number): Cost {
  return {
    bytesRead: PREDICTED_CONTEXT * keyWidth * 4,
    bytesStored: 0,
    operations: PREDICTED_CONTEXT * queryWidth * 2,
    arithmetic: "attention",
    instructions: 1,
  };
}

/** One of two low-rank factors. */
function factor(dtype: FactorDType, rank: number, length: number): Cost {
  const bytes = rank * (factorStride(length) * (dtype === "i8" ? 1 : 2) + 4);
  return {
    bytesRead: bytes,
    bytesStored: bytes,
    operations: rank * factorStride(length),
    arithmetic: "fp32",
    instructions: 1,
  };
}

/** The choice of channels among `inputs`: scores, a bisection and coefficients, which take as long as so many products each. */
function choice(inputs: number): Cost {
  return { ...elementwise([], 0, 4 * inputs), operations: 100 * inputs };
}

/** The sum of `channels` chosen rows, in the mean of tokens. */
function rows(bits: ResidualWidth, channels: number, outputs: number): Cost {
  return {
    bytesRead: Math.round(residualBytesRead(bits, outputs, channels)),
    bytesStored: 4 * outputs,
    operations: channels * outputs,
    arithmetic: "fp32",
    isGathered: true,
    instructions: 1,
  };
}

function sum(a: Cost, b: Cost): Cost {
  return {
    ...a,
    bytesRead: a.bytesRead + b.bytesRead,
    bytesStored: a.bytesStored + b.bytesStored,
    operations: a.operations + b.operations,
  };
}

const FREE: Cost = { bytesRead: 0, bytesStored: 0, operations: 0, arithmetic: "fp32", instructions: 0 };

function lastDim(inputs: readonly TensorType[]): number {
  return fixed(inputs[0]?.shape.at(-1));
}

const COSTS: { readonly [P in Op]: CostRule<P> } = {
  embedding({ params }) {
    const stored = packedShape(params.format ?? BF16, params.rows, params.width).bytes;
    return {
      bytesRead: Math.ceil(stored / params.rows),
      bytesStored: stored,
      operations: params.width,
      arithmetic: "fp32",
      instructions: 1,
    };
  },
  linear({ params }, inputs) {
    const format = params.format ?? BF16;
    const { total } = paddedOutputs(params.weights);
    const { bytes } = packedShape(format, total, width(inputs));
    return {
      bytesRead: bytes,
      bytesStored: bytes,
      operations: total * width(inputs),
      arithmetic: format.kind === "bf16" ? "fp32" : "int8",
      instructions: 1,
    };
  },
  rms_norm: ({ params }, inputs) => elementwise(inputs, 4, 4 * (params.headDim ?? lastDim(inputs))),
  add_rms_norm: (_, inputs) => elementwise(inputs, 5, 4 * lastDim(inputs)),
  rope: (_, inputs) => elementwise(inputs, 2),
  split_heads: () => FREE,
  merge_heads: () => FREE,
  attention: (_, [query, key]) => attention(width([query!]), width([key!])),
  silu: (_, inputs) => elementwise(inputs, 8),
  add: (_, inputs) => elementwise(inputs, 1),
  mul: (_, inputs) => elementwise(inputs, 1),
  silu_mul: (_, inputs) => elementwise(inputs, 9),
  low_rank({ params: { dtype, rank, outputs } }, inputs) {
    return sum(factor(dtype, rank, width(inputs)), factor(dtype, rank, outputs));
  },
  sparse_residual({ params: { width: bits, channels, expected = channels, outputs } }, inputs) {
    const n = width(inputs);
    const bytesStored = n * residualShape(bits, outputs).rowBytes + 4 * (2 * n + outputs);
    return { ...sum(rows(bits, expected, outputs), choice(n)), bytesStored };
  },
  // Added where the outputs are consumed.
  merge: (node) => ({
    ...FREE,
    operations: node.params.deltas * node.outputs.reduce((n, v) => n + elementsPerToken(v.type), 0),
  }),
  copy: (_, inputs) => elementwise(inputs, 1),
  quantize: (_, inputs) => elementwise(inputs, 3),
  // Norm and rotation of queries and keys; keys and values are written. Head by head, far from the rate of products.
  append: (_, [q, k]) => ({ ...FREE, operations: 60 * (width([q!]) + width([k!])), instructions: 1 }),
  attend: ({ params: { kvHeads, headDim } }, inputs) => attention(width(inputs), kvHeads * headDim),
  sparse_select: (_, inputs) => choice(width(inputs)),
  sparse_sum: ({ params: { width: bits, outputs, expected } }, inputs) =>
    rows(bits, expected ?? width(inputs), outputs),
  low_rank_down: ({ params: { dtype, rank } }, inputs) => factor(dtype, rank, width(inputs)),
  low_rank_up: ({ params: { dtype, rank, outputs } }) => factor(dtype, rank, outputs),
};

/** What a window's corrections are, for their costs. */
export interface CorrectionSizes {
  readonly inputs: number;
  readonly outputs: number;
  readonly rank: number;
  /** In the mean of tokens. */
  readonly channels: number;
  readonly factorDType: FactorDType;
  readonly residualWidth: ResidualWidth;
}

/** The costs of a window's corrections, instruction by instruction. */
export function correctionCosts(sizes: CorrectionSizes): Cost[] {
  const { inputs, outputs, rank, channels, factorDType, residualWidth } = sizes;
  return [
    ...rank > 0 ? [factor(factorDType, rank, inputs), factor(factorDType, rank, outputs)] : [],
    ...channels > 0 ? [choice(inputs), rows(residualWidth, channels, outputs)] : [],
  ];
}

export function costOf(node: Node, inputs: readonly TensorType[]): Cost {
  // The row of a node's own op; TypeScript cannot see that the two agree.
  const rule = COSTS[node.op] as (node: Node, inputs: readonly TensorType[]) => Cost;
  return rule(node, inputs);
}

/** What a device gives a node: all of it, or a lane's share of the cores and of the memory's bandwidth. */
export interface Share {
  readonly threads: number;
  /** Bytes per second; absent: what so many threads read when nothing else runs. */
  readonly bandwidth?: number;
}

/** Predicted microseconds of a cost: the slower of reading and computing, plus the overhead of its instructions. */
export function predict(
  cost: Cost,
  profile: MachineProfile,
  device: "gpu" | "cpu",
  share: Share = { threads: profile.cpu.cores },
): number {
  const { cpu, gpu } = profile;
  let bytesPerSecond: number;
  let operationsPerSecond: number;
  let overhead: number;
  if (device === "gpu") {
    if (gpu === undefined) throw new Error(`the profile ${profile.name} has no GPU`);
    bytesPerSecond = 1e9 * gpu.readBandwidth;
    operationsPerSecond = 1e9 * (cost.arithmetic === "int8" ? gpu.int8Rate : gpu.fp32Rate);
    overhead = gpu.instructionOverhead;
  } else {
    const threads = Math.min(share.threads, cpu.cores);
    const { int8Rate, fp32Rate, attentionRate = fp32Rate, gatherShare = 1 } = cpu;
    const rates = { int8: int8Rate, fp32: fp32Rate, attention: attentionRate };
    bytesPerSecond = (share.bandwidth ?? readBandwidth(cpu, threads)) * (cost.isGathered ? gatherShare : 1);
    operationsPerSecond = 1e9 * threads * rates[cost.arithmetic];
    overhead = cpu.instructionOverhead;
  }
  const seconds = Math.max(cost.bytesRead / bytesPerSecond, cost.operations / operationsPerSecond);
  return round(1e6 * seconds + overhead * cost.instructions);
}

/** Predicted microseconds until what one device has made is with the other: its latency, then its bytes. */
export function transferTime({ gpu }: MachineProfile, bytes: number): number {
  return gpu === undefined ? 0 : gpu.linkLatency + bytes / (1e3 * gpu.linkBandwidth);
}

/** Predictions are kept to 0.01 microseconds, which also keeps the graph's text short. */
export function round(microseconds: number): number {
  return Math.round(microseconds * 100) / 100;
}

/** Types of a node's inputs by the graph's values. */
export function inputTypes(
  node: Node,
  types: ReadonlyMap<string, { readonly type: TensorType }>,
): TensorType[] {
  return node.inputs.map((name) => {
    const value = types.get(name);
    if (value === undefined) throw new Error(`${name} is not a value of the graph`);
    return value.type;
  });
}

/** The costs of all nodes, in graph order. */
export function costs(graph: Graph): readonly Cost[] {
  const types = values(graph);
  return graph.nodes.map((node) => costOf(node, inputTypes(node, types)));
}

/** A node's placement with its bytes and predicted time filled in. */
export function withCost(
  placement: Placement,
  cost: Cost,
  profile: MachineProfile,
  threads: number,
): Placement {
  const { device = "cpu" } = placement;
  return {
    ...placement,
    ...(cost.bytesRead > 0 ? { bytesRead: cost.bytesRead } : {}),
    ...(cost.bytesStored > 0 ? { bytesStored: cost.bytesStored } : {}),
    microseconds: predict(cost, profile, device, { threads }),
  };
}
