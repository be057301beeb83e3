/**
 * Names that follow from module paths, `model.layers.3.self_attn.q_proj`: a module's tensor, the packed weight that
 * several modules make together, their layer; and where the parts of a packed weight lie.
 */
import { ROW_BLOCK } from "../weights/format.ts";
import type { TensorRef } from "./ops.ts";

interface Named {
  readonly path: string;
}

/** The weight of a module as PyTorch names it, and so Hugging Face's files: tensor `${path}.weight`. */
export function moduleTensor(path: string): TensorRef {
  return { path, tensor: `${path}.weight` };
}

/** `model.layers.3.self_attn` of `model.layers.3.self_attn.q_proj`; empty for a path without dots. */
export function parentPath(path: string): string {
  const dot = path.lastIndexOf(".");
  return dot < 0 ? "" : path.slice(0, dot);
}

/**
 * `model.layers.3.self_attn.q_proj+k_proj+v_proj`: the weights' common parent and their last segments. Weights that
 * are packed together are siblings; throws when they are not.
 */
export function packedName(weights: readonly Named[]): string {
  const first = weights[0];
  if (first === undefined) throw new Error("a packed weight has no parts");
  if (weights.length === 1) return first.path;
  const parent = parentPath(first.path);
  for (const weight of weights) {
    if (parentPath(weight.path) !== parent) {
      throw new Error(`cannot pack ${weight.path} with ${first.path}: they belong to different modules`);
    }
  }
  const names = weights.map((w) => w.path.slice(parent === "" ? 0 : parent.length + 1));
  return (parent === "" ? "" : parent + ".") + names.join("+");
}

/** The inverse of `packedName`: the paths of a packed weight's parts. */
export function packedPaths(name: string): string[] {
  const [first = "", ...rest] = name.split("+");
  const parent = parentPath(first);
  return [first, ...rest.map((last) => parent === "" ? last : `${parent}.${last}`)];
}

/** The layer a weight belongs to: the first number in its path. Undefined outside layers (embedding, head). */
export function layerOf(path: string): number | undefined {
  const segment = path.split(".").find((s) => /^\d+$/.test(s));
  return segment === undefined ? undefined : Number(segment);
}

/** Where the sections of a packed weight, of its linear's output and of its window's deltas lie. */
export interface PaddedOutputs {
  /** Width with every section padded to a multiple of 16: rows of the packed weight, columns of the output. */
  readonly total: number;
  /** First column of each section, a multiple of 16. */
  readonly firstColumn: readonly number[];
}

export function paddedOutputs(sections: readonly { readonly outputs: number }[]): PaddedOutputs {
  const firstColumn: number[] = [];
  let total = 0;
  for (const { outputs } of sections) {
    firstColumn.push(total);
    total += Math.ceil(outputs / ROW_BLOCK) * ROW_BLOCK;
  }
  return { total, firstColumn };
}
