/**
 * The op table: every operation of the graph with its parameters. Tables over `Op` are total by type: a new op does not
 * compile until each has a row for it. To add an op, add it here, then follow the type checker: its number of inputs
 * (below), its shape rule (infer.ts), its text (syntax.ts), its cost (../cost.ts), the reference executor and the
 * instruction lowering of the cpu executor.
 */
import type { WeightFormat } from "../weights/format.ts";
import type { FactorDType, ResidualWidth } from "../weights/correction.ts";

/** A module and the tensor that holds its weight: what the graph calls it, and what the checkpoint does. */
export interface TensorRef {
  /** Module path, `model.layers.3.self_attn.q_proj`: the weight's name in the graph, in bundles and in messages. */
  readonly path: string;
  /** The checkpoint's tensor, `${path}.weight` where `moduleTensor` (naming.ts) made it. */
  readonly tensor: string;
}

/** One weight matrix, [outputs, inputs] in the checkpoint. */
export interface WeightRef extends TensorRef {
  readonly outputs: number;
  /** The checkpoint's tensor [outputs] that is added to the product; only stage "traced" may have one yet. */
  readonly bias?: string;
}

/** The parameters of every op. What an op does stands beside it. */
export interface Params {
  // Sources and linear algebra.
  /** tokens i32 [T] -> [T, width]: row lookup; the checkpoint's matrix is [rows, width]. */
  embedding: TensorRef & {
    readonly rows: number;
    readonly width: number;
    readonly format?: WeightFormat;
  };
  /**
   * x [T, n] -> one [T, outputs] per weight: y = x W^T. Several weights share one pass over x, and what is corrected as
   * one has a window's name (after `fuse`).
   */
  linear: {
    readonly weights: readonly WeightRef[];
    /** `3.qkv`; no two linears share it. Linears outside layers have none, and no corrections. */
    readonly window?: string;
    readonly format?: WeightFormat;
  };

  // Normalisation and positions.
  /** x [..., n] -> [..., n]: x / sqrt(mean(x^2) + epsilon) * weight[n]. */
  rms_norm: TensorRef & { readonly epsilon: number };
  /** (a, b) [T, n] -> a + b and its rms_norm: the residual stream and what the next block reads (after `fuse`). */
  add_rms_norm: TensorRef & { readonly epsilon: number };
  /** (x [T, heads, d], positions i32 [T]) -> [T, heads, d]: rotates pairs (i, i + d/2) by position * theta^(-2i/d). */
  rope: { readonly theta: number };

  // Shape only.
  /** [T, n] -> [T, n / headDim, headDim]. */
  split_heads: { readonly headDim: number };
  /** [T, heads, d] -> [T, heads * d]. */
  merge_heads: Record<never, never>;

  // Attention over the key-value cache of `layer`; query head h reads key-value head floor(h * kvHeads / heads).
  /** (q [T, heads, d], k [T, kvHeads, d], v [T, kvHeads, d], positions) -> [T, heads, d]; causal; appends k and v. */
  attention: { readonly layer: number; readonly scale: number };

  // Elementwise.
  silu: Record<never, never>;
  add: Record<never, never>;
  mul: Record<never, never>;
  /** (gate, up) -> silu(gate) * up (after `fuse`). */
  silu_mul: Record<never, never>;

  // Corrections (after `compensate`). A window's delta is one [T, outputs] with the layout of correction.ts.
  /** x [T, n] -> delta: (x A_r) B_r. */
  low_rank: {
    readonly window: string;
    readonly rank: number;
    readonly outputs: number;
    readonly dtype: FactorDType;
  };
  /** x [T, n] -> delta: sum over the `channels` inputs of largest |x_j| * norm_j of x_j E_j; ties by lower index. */
  sparse_residual: {
    readonly window: string;
    readonly channels: number;
    readonly outputs: number;
    readonly width: ResidualWidth;
  };
  /** (k outputs of a linear, then d deltas of its window) -> the k outputs, each with its part of every delta added. */
  merge: { readonly window: string; readonly deltas: number; readonly slack: number };
}

export type Op = keyof Params;

/** Sets that passes ask, in place of switches. */
export const FUSED_OPS: ReadonlySet<Op> = new Set<Op>(["add_rms_norm", "silu_mul"]);
export const CORRECTION_OPS: ReadonlySet<Op> = new Set<Op>(["low_rank", "sparse_residual"]);
export const VIEW_OPS: ReadonlySet<Op> = new Set<Op>(["split_heads", "merge_heads"]);

export function isOp(name: string): name is Op {
  return Object.hasOwn(ARITY, name);
}

/** Number of inputs: [least, most]. */
export const ARITY: { readonly [P in Op]: readonly [number, number] } = {
  embedding: [1, 1],
  linear: [1, 1],
  rms_norm: [1, 1],
  add_rms_norm: [2, 2],
  rope: [2, 2],
  split_heads: [1, 1],
  merge_heads: [1, 1],
  attention: [4, 4],
  silu: [1, 1],
  add: [2, 2],
  mul: [2, 2],
  silu_mul: [2, 2],
  low_rank: [1, 1],
  sparse_residual: [1, 1],
  merge: [2, 8],
};
