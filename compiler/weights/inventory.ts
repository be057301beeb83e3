/**
 * What a graph reads from a checkpoint and from a bundle: matrices, as they are packed together, and norm vectors.
 * checkModel, the packer and openBundle ask here, so that a weight has one name and one shape for all of them.
 */
import { type Graph, type Node, values } from "../ir/graph.ts";
import { moduleTensor, packedName, paddedOutputs } from "../ir/naming.ts";
import type { TensorRef, WeightRef } from "../ir/ops.ts";
import type { WeightFormat } from "./format.ts";

/** Matrices that share one packed weight: tensor `${name}.packed` of a bundle. */
export interface Matrix {
  readonly name: string;
  readonly sections: readonly WeightRef[];
  /** First row of each section in the packed weight, and its rows with the padding. */
  readonly firstRows: readonly number[];
  readonly rows: number;
  readonly inputs: number;
  /** Undefined before the pass `quantize`. */
  readonly format: WeightFormat | undefined;
  /** The window whose corrections belong to it; undefined outside layers. */
  readonly window: string | undefined;
}

export interface Vector extends TensorRef {
  readonly length: number;
}

export interface Inventory {
  /** In graph order; a matrix that is used twice (a tied head) is listed once. */
  readonly matrices: readonly Matrix[];
  /** Norm vectors by module path, tensor `${path}.weight` of a bundle. */
  readonly vectors: ReadonlyMap<string, Vector>;
}

/** Weights of a matrix, without padding. */
export function elementsOf({ sections, inputs }: Matrix): number {
  return sections.reduce((sum, s) => sum + s.outputs * inputs, 0);
}

/** @param nodes those of the graph's whose weights are wanted; default: all */
export function inventory(graph: Graph, nodes: readonly Node[] = graph.nodes): Inventory {
  const types = values(graph);
  const width = (node: Node): number => {
    const dim = types.get(node.inputs[0] ?? "")?.type.shape.at(-1);
    if (typeof dim !== "number") throw new Error(`${node.op}: its input has no fixed width`);
    return dim;
  };
  const matrices = new Map<string, Matrix>();
  const vectors = new Map<string, Vector>();
  const add = (
    sections: readonly WeightRef[],
    inputs: number,
    format: WeightFormat | undefined,
    window: string | undefined,
  ) => {
    const name = packedName(sections);
    if (matrices.has(name)) return;
    const { total, firstColumn } = paddedOutputs(sections);
    matrices.set(name, { name, sections, firstRows: firstColumn, rows: total, inputs, format, window });
  };
  for (const node of nodes) {
    switch (node.op) {
      case "embedding": {
        const { path, tensor, rows, width, format } = node.params;
        add([{ path, tensor, outputs: rows }], width, format, undefined);
        break;
      }
      case "linear":
        add(node.params.weights, width(node), node.params.format, node.params.window);
        break;
      case "rms_norm":
      case "add_rms_norm": {
        const { path, tensor } = node.params;
        vectors.set(path, { path, tensor, length: headDimOf(node) ?? width(node) });
        break;
      }
      case "append": {
        const { qNorm, kNorm, headDim } = node.params;
        for (const norm of [qNorm, kNorm]) {
          if (norm) vectors.set(norm.path, { ...moduleTensor(norm.path), length: headDim });
        }
        break;
      }
      default: // no other op has weights of the checkpoint
    }
  }
  return { matrices: [...matrices.values()], vectors };
}

/** Columns of a head, where a lowered norm is of heads. */
function headDimOf(node: Node): number | undefined {
  return node.op === "rms_norm" ? node.params.headDim : undefined;
}

/** Every tensor the graph needs of a checkpoint, by name, with its shape. */
export function expectedTensors(graph: Graph): ReadonlyMap<string, readonly number[]> {
  const { matrices, vectors } = inventory(graph);
  const expected = new Map<string, readonly number[]>();
  for (const { sections, inputs } of matrices) {
    for (const { tensor, outputs, bias } of sections) {
      expected.set(tensor, [outputs, inputs]);
      if (bias !== undefined) expected.set(bias, [outputs]);
    }
  }
  for (const { tensor, length } of vectors.values()) expected.set(tensor, [length]);
  return expected;
}
