/**
 * The numbers of a bundle: every weight packed in its format, and the error of every window stored in the forms of
 * its corrections. One window at a time: its weights, its error E = W - Wq (measured from the packed bytes) and its
 * corrections are written before the next is read, so that the largest window bounds the memory.
 */
import { errorOf, factorise, packResidual, quantize } from "../../ffi/packing.ts";
import { HcinferError } from "../errors.ts";
import type { PackedWeight, WindowStore } from "../plan.ts";
import type { WindowStatistics } from "../passes/budget.ts";
import type { Checkpoint, WeightTensor } from "./checkpoint.ts";
import { type FactorDType, factorStride, residualShape, type ResidualWidth } from "./correction.ts";
import { formatText, packedShape, type WeightFormat } from "./format.ts";
import { widen } from "./half.ts";
import type { Inventory, Matrix } from "./inventory.ts";
import type { TensorSpec } from "./safetensors.ts";

/** What to store of every window's error; null: not that form. */
export interface StoredForms {
  readonly residual: { readonly width: ResidualWidth } | null;
  readonly factors: { readonly dtype: FactorDType; readonly maxRank: number } | null;
}

export interface PackOptions {
  readonly forms: StoredForms;
  readonly threads: number;
  /** Weights packed so far, of how many, and the packed weight or vector that is next. */
  readonly onProgress?: (done: number, total: number, what: string) => void;
}

export interface Packed {
  readonly weights: PackedWeight[];
  readonly windows: WindowStore[];
  readonly statistics: WindowStatistics[];
  /** Weights of the model: elements of all tensors the graph reads. */
  readonly parameters: number;
}

/** Where the tensors go: a BundleWriter, or a map in a test. */
export interface TensorSink {
  write(name: string, ...parts: readonly Uint8Array[]): void;
}

/** Name, data type and shape of every tensor that `packAll` writes, in the order of writing. */
export function tensorSpecs({ matrices, vectors }: Inventory, forms: StoredForms): TensorSpec[] {
  return [
    ...[...vectors].map(([path, n]): TensorSpec => ({ name: `${path}.weight`, dtype: "F32", shape: [n] })),
    ...matrices.flatMap((matrix): TensorSpec[] => [
      { name: `${matrix.name}.packed`, dtype: "U8", shape: [bytesOf(matrix)] },
      ...windowSpecs(matrix, forms),
    ]),
  ];
}

function windowSpecs(matrix: Matrix, { residual, factors }: StoredForms): TensorSpec[] {
  const { window, inputs, rows: outputs } = matrix;
  if (window === undefined) return [];
  const specs: TensorSpec[] = [];
  const add = (name: string, dtype: TensorSpec["dtype"], ...shape: number[]) => {
    specs.push({ name: `${window}.${name}`, dtype, shape });
  };
  if (residual) {
    add("residual.codes", "U8", inputs, residualShape(residual.width, outputs).rowBytes);
    add("residual.output_scale", "F32", outputs);
    add("residual.channel_scale", "F32", inputs);
    add("residual.norm", "F32", inputs);
  }
  if (factors) {
    const rank = storedRank(matrix, factors.maxRank);
    const dtype = factors.dtype === "i8" ? "I8" : "BF16";
    add("factors.a", dtype, rank, factorStride(inputs));
    add("factors.b", dtype, rank, factorStride(outputs));
    for (const name of ["a_scale", "b_scale", "spectrum"]) add(`factors.${name}`, "F32", rank);
  }
  return specs;
}

/** A matrix has no more components than its smaller side. */
function storedRank({ inputs, rows }: Matrix, maxRank: number): number {
  return Math.min(maxRank, inputs, rows);
}

/** Packs and measures everything. Throws HcinferError("checkpoint") naming a tensor with NaN or infinite weights. */
export function packAll(
  inventory: Inventory,
  checkpoint: Checkpoint,
  sink: TensorSink,
  options: PackOptions,
): Packed {
  const { matrices, vectors } = inventory;
  const total = matrices.reduce((sum, m) => sum + elementsOf(m), 0);
  const result: Packed = { weights: [], windows: [], statistics: [], parameters: 0 };
  for (const [path, length] of vectors) {
    const name = `${path}.weight`;
    const tensor = checkpoint.tensor(name);
    const values = widen(tensor.bytes, tensor.dtype);
    const bad = values.findIndex((v) => !Number.isFinite(v));
    if (bad >= 0) throw notFinite(checkpoint, name, `the weight at ${bad} is ${values[bad]}`);
    if (values.length !== length) throw new Error(`${name} was not checked against the graph`);
    sink.write(name, bytesView(values));
  }
  const scratch = new Scratch();
  let done = 0;
  for (const matrix of matrices) {
    options.onProgress?.(done, total, matrix.window ?? matrix.name);
    const packed = packMatrix(matrix, checkpoint, options.threads);
    sink.write(`${matrix.name}.packed`, ...packed.sections.map((s) => s.packed));
    result.weights.push(describe(matrix, packed));
    if (matrix.window !== undefined) {
      const { store, statistics } = measureWindow(matrix, matrix.window, packed, sink, scratch, options);
      result.windows.push(store);
      result.statistics.push(statistics);
    }
    done += elementsOf(matrix);
  }
  options.onProgress?.(total, total, "");
  const parameters = total + [...vectors.values()].reduce((a, b) => a + b, 0);
  return { ...result, parameters };
}

interface PackedSection {
  readonly tensor: WeightTensor;
  readonly rows: number;
  readonly firstRow: number;
  readonly packed: Uint8Array;
  readonly errorEnergy: number;
  readonly energy: number;
}

interface PackedMatrix {
  readonly format: WeightFormat;
  readonly sections: readonly PackedSection[];
}

/** Packs every section; whole row blocks follow each other, so their bytes are those of one packed weight. */
function packMatrix(matrix: Matrix, checkpoint: Checkpoint, threads: number): PackedMatrix {
  const format = formatOf(matrix);
  const sections = matrix.sections.map(({ path, outputs }, i): PackedSection => {
    const name = `${path}.weight`;
    const tensor = checkpoint.tensor(name);
    const packed = naming(
      checkpoint,
      name,
      () => quantize(tensor.bytes, tensor.dtype, outputs, matrix.inputs, format, threads),
    );
    return { tensor, rows: outputs, firstRow: matrix.firstRows[i] ?? 0, ...packed };
  });
  return { format, sections };
}

/** The error of a window from its packed bytes, stored in the forms asked for. */
function measureWindow(
  matrix: Matrix,
  window: string,
  { format, sections }: PackedMatrix,
  sink: TensorSink,
  scratch: Scratch,
  { forms: { residual, factors }, threads }: PackOptions,
): { store: WindowStore; statistics: WindowStatistics } {
  const { inputs, rows: outputs } = matrix;
  const sum = (key: "errorEnergy" | "energy") => sections.reduce((total, s) => total + s[key], 0);
  const store = { window, inputs, outputs, errorEnergy: sum("errorEnergy") };
  let statistics: WindowStatistics = {
    ...store,
    backboneBytes: bytesOf(matrix),
    weightEnergy: sum("energy"),
  };
  if (!residual && !factors) return { store: { ...store, residual, factors }, statistics };

  const error = scratch.zeros(outputs * inputs);
  for (const { tensor, packed, rows, firstRow } of sections) {
    const out = error.subarray(firstRow * inputs, (firstRow + rows) * inputs);
    errorOf(tensor.bytes, tensor.dtype, packed, format, rows, inputs, out, threads);
  }
  const write = (name: string, values: Uint8Array | Float32Array) => {
    const bytes = bytesView(values);
    sink.write(`${window}.${name}`, bytes);
    return bytes.length;
  };
  let storedResidual: WindowStore["residual"] = null;
  if (residual) {
    const stored = packResidual(error, outputs, inputs, residual.width, threads);
    const bytes = write("residual.codes", stored.codes) +
      write("residual.output_scale", stored.outputScale) +
      write("residual.channel_scale", stored.channelScale) +
      write("residual.norm", stored.norm);
    storedResidual = { width: residual.width, bytes };
    statistics = { ...statistics, norms: stored.norm };
  }
  let storedFactors: WindowStore["factors"] = null;
  if (factors) {
    const maxRank = storedRank(matrix, factors.maxRank);
    const stored = factorise(error, outputs, inputs, maxRank, factors.dtype, threads);
    const bytes = write("factors.a", stored.a) +
      write("factors.b", stored.b) +
      write("factors.a_scale", stored.aScale) +
      write("factors.b_scale", stored.bScale) +
      write("factors.spectrum", stored.spectrum);
    storedFactors = { dtype: factors.dtype, maxRank, bytes };
    statistics = { ...statistics, spectrum: stored.spectrum };
  }
  return { store: { ...store, residual: storedResidual, factors: storedFactors }, statistics };
}

function describe(matrix: Matrix, { format, sections }: PackedMatrix): PackedWeight {
  return {
    tensor: `${matrix.name}.packed`,
    format: formatText(format),
    rows: matrix.rows,
    inputs: matrix.inputs,
    bytes: bytesOf(matrix),
    sections: sections.map(({ firstRow, rows, errorEnergy, energy }, i) => ({
      path: matrix.sections[i]?.path ?? "",
      firstRow,
      rows,
      relativeError: energy > 0 ? errorEnergy / energy : 0,
    })),
  };
}

/** The error of one window after another, in memory that is taken once. */
class Scratch {
  #values = new Float32Array(0);

  zeros(length: number): Float32Array {
    if (this.#values.length < length) this.#values = new Float32Array(length);
    return this.#values.subarray(0, length).fill(0);
  }
}

function formatOf({ name, format }: Matrix): WeightFormat {
  if (format === undefined) throw new Error(`${name} has no format: packing comes after quantize`);
  return format;
}

function bytesOf(matrix: Matrix): number {
  return packedShape(formatOf(matrix), matrix.rows, matrix.inputs).bytes;
}

function elementsOf({ sections, inputs }: Matrix): number {
  return sections.reduce((sum, s) => sum + s.outputs * inputs, 0);
}

function bytesView(values: Uint8Array | Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** Adds the tensor's name to what the packer says of a weight. */
function naming<T>(checkpoint: Checkpoint, name: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof HcinferError && error.kind === "checkpoint") {
      throw notFinite(checkpoint, name, error.message, error);
    }
    throw error;
  }
}

function notFinite(checkpoint: Checkpoint, name: string, what: string, cause?: unknown): HcinferError {
  const message = `the tensor ${name} of ${checkpoint.folder} cannot be compiled: ${what}`;
  return new HcinferError("checkpoint", message, { cause });
}
