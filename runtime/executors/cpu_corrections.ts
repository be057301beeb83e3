/**
 * Lowering of corrections. Each has two parts: one that reads only x (a token's choice of channels, the first factor),
 * which may run beside the window's linear, and one that makes the delta.
 */
import type { Node, NodeOf } from "../../compiler/ir/graph.ts";
import { factorStride, residualShape, type ResidualWidth } from "../../compiler/weights/correction.ts";
import type { Places } from "./cpu_places.ts";
import type { Program } from "./cpu_program.ts";

export type Correction = NodeOf<"low_rank"> | NodeOf<"sparse_residual">;

export function isCorrection(node: Node): node is Correction {
  return node.op === "low_rank" || node.op === "sparse_residual";
}

/** Emits a correction's second part; `barrier`: whether the lane's threads meet after it. */
export type Finish = (barrier: boolean) => void;

/**
 * Emits a correction's first part. `barrier`: whether the lane's threads meet after it; where they do not, the second part
 * waits for it to be done.
 */
export function beginCorrection(
  program: Program,
  places: Places,
  node: Correction,
  barrier: boolean,
): Finish {
  return node.op === "sparse_residual"
    ? beginSparse(program, places, node, barrier)
    : beginLowRank(program, places, node, barrier);
}

/**
 * A prompt does not choose: its linear adds the whole residual. So both parts run in token steps only.
 */
function beginSparse(
  program: Program,
  places: Places,
  node: NodeOf<"sparse_residual">,
  barrier: boolean,
): Finish {
  const x = places.address(node.inputs[0]!).place;
  const { channels, outputs } = node.params;
  const selection = {
    index: places.allocate(channels),
    coefficient: places.allocate(channels / 2),
    selectionScale: places.allocate(1),
    selectionSum: places.allocate(1),
  };
  const residual = residualOf(places, node);
  const sizes = { channels, ...residual.sizes };
  const first = program.length;
  program.emit("sparseSelect", barrier, { x, ...residual.operands, ...selection }, sizes, {}, "decode");
  return (last) => {
    const after = barrier ? 0 : program.length - first;
    const delta = places.make(node.outputs[0]!.name, outputs);
    const integers = { ...sizes, deltaStride: outputs };
    const operands = { ...residual.operands, ...selection, delta };
    program.emit("sparseSum", last, operands, integers, {}, "decode", after);
  };
}

function beginLowRank(program: Program, places: Places, node: NodeOf<"low_rank">, barrier: boolean): Finish {
  const x = places.address(node.inputs[0]!).place;
  const inputs = places.width(node.inputs[0]!);
  const { window, rank, outputs, dtype } = node.params;
  const hiddenStride = Math.ceil(rank / 16) * 16;
  const hidden = places.allocate(hiddenStride);
  const tensor = (name: string) => places.weight(`${window}.factors.${name}`);
  const factors = { a: tensor("a"), b: tensor("b"), aScale: tensor("a_scale"), bScale: tensor("b_scale") };
  const sizes = {
    hiddenStride,
    aStride: factorStride(inputs),
    bStride: factorStride(outputs),
    inputs,
    outputs,
    rank,
    bf16: dtype === "bf16" ? 1 : 0,
  };
  const first = program.length;
  program.emit("lowRankDown", barrier, { x, ...factors, hidden }, sizes, {});
  return (last) => {
    const after = barrier ? 0 : program.length - first;
    const delta = places.make(node.outputs[0]!.name, outputs);
    const integers = { ...sizes, deltaStride: outputs };
    program.emit("lowRankUp", last, { hidden, ...factors, delta }, integers, {}, "always", after);
  };
}

/** A window's residual, under the names the instruction table gives its parts. */
export function residualOf(places: Places, node: NodeOf<"sparse_residual">) {
  const { window, outputs, width } = node.params;
  const tensor = (name: string) => places.weight(`${window}.residual.${name}`);
  return {
    operands: {
      residualCodes: tensor("codes"),
      outputScale: tensor("output_scale"),
      channelScale: tensor("channel_scale"),
      norm: tensor("norm"),
    },
    sizes: {
      residualWidth: width,
      residualInputs: places.width(node.inputs[0]!),
      residualOutputs: outputs,
      rowBytes: residualShape(width as ResidualWidth, outputs).rowBytes,
    },
  };
}

/** What an instruction has in place of a residual where there is none. */
export const NO_RESIDUAL = { residualWidth: 0, residualInputs: 0, residualOutputs: 0, rowBytes: 0 } as const;
