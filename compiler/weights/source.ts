/**
 * Where packing gets weights from: a checkpoint's tensors, or these transformed. What changes weights before they are
 * quantised (smoothing scales, rotations) wraps a source and returns a source, and changes the matrices and the norm
 * vectors it folds into together, so that the model computes the same function.
 */
import { HcinferError } from "../errors.ts";
import type { Graph } from "../ir/graph.ts";
import type { TensorRef, WeightRef } from "../ir/ops.ts";
import type { Checkpoint, StoredTensor } from "./checkpoint.ts";
import { widen } from "./half.ts";

/** Types that packing reads without a copy. */
export const WEIGHT_DTYPES = ["BF16", "F16", "F32"] as const;
export type WeightDType = typeof WEIGHT_DTYPES[number];

/** Numbers of a weight, row-major: f32, or narrower as a checkpoint has them. */
export interface WeightTensor {
  readonly dtype: WeightDType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export interface WeightSource {
  /** Where the weights come from, for messages. */
  readonly origin: string;
  /**
   * A matrix, [outputs, inputs]. Asked for once a pass over the weights: what is computed need not be kept. Throws
   * HcinferError("checkpoint") when it is missing.
   */
  matrix(ref: WeightRef): WeightTensor;
  /** A vector in f32. Throws as `matrix` does. */
  vector(ref: TensorRef): Float32Array<ArrayBuffer>;
}

/** A change of weights that leaves the function of the model as it is. */
export interface WeightTransform {
  /** What it is and its parameters: recorded in the bundle. */
  readonly name: string;
  /** `graph` is the fused graph: what reads what. */
  apply(source: WeightSource, graph: Graph): WeightSource;
}

/** The weights as the checkpoint has them. `checkModel` has shown that those of the graph are there. */
export function checkpointSource(checkpoint: Checkpoint): WeightSource {
  const read = ({ tensor: name }: TensorRef): WeightTensor => {
    const tensor = checkpoint.tensor(name);
    if (tensor !== undefined && isWeightTensor(tensor)) return tensor;
    const found = tensor === undefined ? "no such tensor" : tensor.dtype;
    throw new HcinferError(
      "checkpoint",
      `${checkpoint.path}: the weight ${name} must be ${WEIGHT_DTYPES.join(", ")}, found ${found}`,
    );
  };
  return { origin: checkpoint.path, matrix: read, vector: (ref) => valuesOf(read(ref)) };
}

/** The matrix of `ref`; a source that changes its shape is wrong, and would be packed as noise. */
export function matrixOf(source: WeightSource, ref: WeightRef, inputs: number): WeightTensor {
  const tensor = source.matrix(ref);
  const expected = [ref.outputs, inputs];
  if (tensor.shape.join() === expected.join()) return tensor;
  throw new Error(`${source.origin} gives ${ref.tensor} as [${tensor.shape}], the graph has [${expected}]`);
}

export function isWeightTensor(tensor: StoredTensor): tensor is WeightTensor {
  return (WEIGHT_DTYPES as readonly string[]).includes(tensor.dtype);
}

/** A tensor's numbers, exactly. */
export function valuesOf({ bytes, dtype }: WeightTensor): Float32Array<ArrayBuffer> {
  return widen(bytes, dtype);
}

/** Numbers as the tensor that a transform returns. */
export function tensorOf(values: Float32Array, shape: readonly number[]): WeightTensor {
  return { dtype: "F32", shape, bytes: new Uint8Array(values.buffer, values.byteOffset, values.byteLength) };
}
