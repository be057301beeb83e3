/**
 * Bundles of random weights, for measuring speed on shapes whose checkpoints are not at hand. No checkpoint is read or written:
 * of every kind of weight some row blocks are packed by the real packer, and the file repeats their bytes. So a bundle is
 * written as fast as the disk takes it (Llama-3.1-8B in q4: 5 GB), and kernels meet scales and zero points of a sane size.
 */
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { BundleWriter } from "../../compiler/bundle_writer.ts";
import { COMPILE_DEFAULTS, defaultResidualWidth } from "../../compiler/compile.ts";
import { architectureFile, traceModel } from "../../compiler/frontend/trace.ts";
import { printGraph } from "../../compiler/ir/text.ts";
import { type Budget, budget } from "../../compiler/passes/budget.ts";
import { compensate } from "../../compiler/passes/compensate.ts";
import { fuse } from "../../compiler/passes/fuse.ts";
import { layout } from "../../compiler/passes/layout.ts";
import { lower } from "../../compiler/passes/lower.ts";
import { place } from "../../compiler/passes/place.ts";
import { quantize } from "../../compiler/passes/quantize.ts";
import { schedule } from "../../compiler/passes/schedule.ts";
import { limitsOf } from "../../compiler/memory.ts";
import type { DeviceChoice } from "../../compiler/passes/devices.ts";
import { type PackedWeight, type Plan, PLAN_VERSION, type WindowStore } from "../../compiler/plan.ts";
import type { MachineProfile } from "../../compiler/profile.ts";
import { reportOf } from "../../compiler/report.ts";
import { fileChecksum } from "../../compiler/weights/checksum.ts";
import { type Config, parseConfig } from "../../compiler/weights/config.ts";
import { type FormatKind, formatText, packedShape } from "../../compiler/weights/format.ts";
import { elementsOf, type Inventory, inventory, type Matrix } from "../../compiler/weights/inventory.ts";
import { tensorSpecs } from "../../compiler/weights/pack.ts";
import { DTYPE_BYTES, type TensorSpec } from "../../compiler/weights/safetensors.ts";
import type { StoredForms } from "../../compiler/weights/window.ts";
import { quantize as pack } from "../../ffi/packing.ts";
import { statisticsOf } from "../fixtures/passes.ts";

/** A Llama's sizes, with the names of its config.json. */
export interface LlamaShape {
  readonly name: string;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly vocab_size: number;
}

export const LLAMA_8B: LlamaShape = {
  name: "Llama-3.1-8B's shape",
  hidden_size: 4096,
  intermediate_size: 14_336,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  head_dim: 128,
  vocab_size: 128_256,
};

/** For a smoke test. */
export const SMALL: LlamaShape = {
  name: "a small shape",
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  vocab_size: 128,
};

export interface RandomModelOptions {
  readonly shape: LlamaShape;
  readonly weights: FormatKind;
  readonly head: FormatKind;
  readonly correct: "none" | "low_rank" | "sparse";
  readonly budget: Budget;
  readonly profile: MachineProfile;
  /** Default "auto". */
  readonly device?: DeviceChoice;
  readonly gpuMemory?: number;
  /** Default: `limitsOf`. */
  readonly context?: number;
}

/** A plan, and what its weights file would hold. */
export interface PlannedModel {
  readonly plan: Plan;
  readonly graphText: string;
  readonly specs: readonly TensorSpec[];
  readonly inventory: Inventory;
}

/** Plans the model as the compiler does, with the error statistics of weights whose error is like noise. */
export async function planRandomModel(options: RandomModelOptions): Promise<PlannedModel> {
  const { shape, profile, correct } = options;
  const { group, factorDType, maxRank } = COMPILE_DEFAULTS, residualWidth = defaultResidualWidth(false);
  const config = configOf(shape);
  const file = architectureFile(config.model_type);
  const traced = await traceModel({ source: readFileSync(file, "utf8"), file, config });
  const quantized = quantize(fuse(traced), { ...options, group });
  const { max_position_embeddings: most } = config;
  const asked = options.context === undefined ? {} : { contextLength: options.context };
  const limits = limitsOf({ name: shape.name, contextLength: most }, asked, profile.gpu !== undefined);
  const placed = place(quantized, { ...options, limits });
  const forms: StoredForms = {
    residual: correct === "sparse" ? { width: residualWidth } : null,
    factors: correct === "low_rank" ? { dtype: factorDType, maxRank } : null,
  };
  const corrections = { residualWidth, factorDType, maxRank };
  const budgeted = budget(placed, { ...options, ...corrections, statistics: statisticsOf(quantized) });
  const lowered = lower(compensate(budgeted, { ...corrections, profile }), { profile });
  const needs = inventory(quantized);
  const specs = tensorSpecs(needs, forms);
  const windows = needs.matrices.flatMap((matrix) => storeOf(matrix, specs, forms));
  const { graph, lanes, corrections: mode } = schedule(lowered, { profile });
  const plan: Plan = {
    version: PLAN_VERSION,
    model: {
      architecture: graph.architecture,
      name: shape.name,
      hiddenSize: config.hidden_size,
      layers: config.num_hidden_layers,
      heads: config.num_attention_heads,
      kvHeads: config.num_key_value_heads,
      headDim: config.head_dim,
      vocabularySize: config.vocab_size,
      contextLength: config.max_position_embeddings,
      stopTokens: [],
      bosToken: null,
      parameters: needs.matrices.reduce((sum, matrix) => sum + elementsOf(matrix), 0),
    },
    graph,
    lanes,
    memory: layout(graph),
    corrections: mode,
    weights: needs.matrices.map(describe),
    vectors: Object.fromEntries(
      [...needs.vectors.values()].map(({ path, length }) => [`${path}.weight`, length]),
    ),
    windows,
    provenance: { compiler: "random weights", profile },
  };
  return { plan, graphText: printGraph(graph), specs, inventory: needs };
}

/** Writes a planned model as a bundle; returns its bytes. @param threads of the checksum */
export function writeRandomBundle(output: string, model: PlannedModel, threads: number): number {
  const { plan, graphText, specs, inventory: { matrices } } = model;
  const bytes = new RandomBytes();
  const byTensor = new Map(matrices.map((matrix) => [`${matrix.name}.packed`, matrix]));
  using writer = new BundleWriter(output, specs);
  for (const spec of specs) {
    const matrix = byTensor.get(spec.name);
    writer.write(spec.name, ...(matrix ? bytes.packed(matrix, threads) : bytes.tensor(spec)));
  }
  writer.finish({
    plan,
    graphText,
    report: reportOf(plan, []),
    tokenizer: [],
    checksum: (path) => fileChecksum(path, threads),
  });
  return writer.bytes;
}

function configOf({ name: _, ...shape }: LlamaShape): Config {
  const rest = {
    model_type: "llama",
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-5,
    rope_theta: 500_000,
    hidden_act: "silu",
    tie_word_embeddings: false,
  };
  return parseConfig(JSON.stringify({ ...rest, ...shape }), "the shape's config.json");
}

function describe(matrix: Matrix): PackedWeight {
  const format = matrix.format!;
  return {
    tensor: `${matrix.name}.packed`,
    format: formatText(format),
    rows: matrix.rows,
    inputs: matrix.inputs,
    bytes: packedShape(format, matrix.rows, matrix.inputs).bytes,
    sections: matrix.sections.map(({ path, outputs }, i) => ({
      path,
      firstRow: matrix.firstRows[i]!,
      rows: outputs,
      relativeError: 0.01,
    })),
  };
}

function storeOf(matrix: Matrix, specs: readonly TensorSpec[], forms: StoredForms): WindowStore[] {
  const { window, inputs, rows: outputs } = matrix;
  if (window === undefined) return [];
  const bytes = (form: string) =>
    specs.filter(({ name }) => name.startsWith(`${window}.${form}.`)).reduce((sum, s) => sum + bytesOf(s), 0);
  const rank = specs.find(({ name }) => name === `${window}.factors.a`)?.shape[0] ?? 0;
  return [{
    window,
    inputs,
    outputs,
    errorEnergy: inputs * outputs / 100,
    residual: forms.residual ? { width: forms.residual.width, bytes: bytes("residual") } : null,
    factors: forms.factors ? { dtype: forms.factors.dtype, maxRank: rank, bytes: bytes("factors") } : null,
  }];
}

function bytesOf({ dtype, shape }: TensorSpec): number {
  return shape.reduce((product, n) => product * n, DTYPE_BYTES[dtype]);
}

/** Rows that are packed of every kind of weight; the file repeats them. */
const SAMPLE_ROWS = 128;

/** Bytes of tensors, in pieces of some that are made once. */
class RandomBytes {
  readonly #codes = new Uint8Array(randomBytes(1 << 22));
  readonly #samples = new Map<string, Uint8Array>();

  /** Weights with a standard deviation near 0.02. */
  packed(matrix: Matrix, threads: number): Uint8Array[] {
    const { inputs } = matrix, format = matrix.format!;
    const key = `${formatText(format)} ${inputs}`;
    let sample = this.#samples.get(key);
    if (sample === undefined) {
      const values = Float32Array.from({ length: SAMPLE_ROWS * inputs }, () => (Math.random() - 0.5) * 0.07);
      sample = pack(new Uint8Array(values.buffer), "F32", SAMPLE_ROWS, inputs, format, threads).packed;
      this.#samples.set(key, sample);
    }
    return repeated(sample, packedShape(format, matrix.rows, inputs).bytes);
  }

  /** A vector of ones for norms; of corrections random codes, and scales that make them a hundredth of the weights. */
  tensor(spec: TensorSpec): Uint8Array[] {
    const bytes = bytesOf(spec);
    if (spec.dtype !== "F32") return repeated(this.#codes, bytes);
    const values = new Float32Array(bytes / 4);
    const kind = spec.name.slice(spec.name.lastIndexOf(".") + 1);
    const [least, most] = SCALES[kind] ?? [1, 1];
    return [new Uint8Array(values.map(() => least + (most - least) * Math.random()).buffer)];
  }
}

const SCALES: Readonly<Record<string, readonly [number, number]>> = {
  output_scale: [1e-3, 1e-3],
  channel_scale: [0.1, 0.2],
  norm: [0.01, 0.02],
  a_scale: [1e-4, 1e-4],
  b_scale: [1e-4, 1e-4],
  spectrum: [0.1, 0.1],
};

function repeated(sample: Uint8Array, bytes: number): Uint8Array[] {
  const whole = Array.from({ length: Math.floor(bytes / sample.length) }, () => sample);
  return [...whole, sample.subarray(0, bytes % sample.length)];
}
