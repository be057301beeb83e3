/**
 * A model as llama.cpp quantises it: the matrices of the layers go through llama.cpp's own code, as a GGUF file, and come back
 * as numbers in a checkpoint. All else stays as it is, so that what differs is how these matrices are rounded.
 *
 * The file has the layers' matrices alone. Rows of queries and keys are not in the order that llama.cpp's llama graphs expect:
 * quantising knows no order of rows, and nobody runs this file.
 */
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { basename, join, resolve } from "node:path";
import { z } from "zod";
import { HcinferError } from "../../compiler/errors.ts";
import { parseJson } from "../../compiler/json.ts";
import { type Checkpoint, openCheckpoint, type StoredTensor } from "../../compiler/weights/checkpoint.ts";
import { layoutSafetensors, type TensorDType } from "../../compiler/weights/safetensors.ts";
import { quantizeGguf } from "../../ffi/llama_cpp.ts";
import { mapFile } from "../../ffi/mapping.ts";
import { BLOCK_FORMATS, type BlockFormatName, blockFormatOf, decodeBlocks, PLAIN_IDS } from "./ggml.ts";
import { type MetadataValue, readGguf, writeGguf } from "./gguf.ts";
import { LLAMA_VERSION, llamaLibrary } from "./llama_install.ts";

/** Types of whole models, with llama.cpp's numbers of them (llama.h, enum llama_ftype). */
export const LLAMA_TYPES = { Q4_0: 2, Q3_K_S: 11, Q3_K_M: 12 } as const;
export type LlamaType = keyof typeof LLAMA_TYPES;

/** Architectures that Hugging Face and llama.cpp call the same, and whose matrices are those below. */
const ARCHITECTURES = ["llama", "qwen3"];

const MATRICES: Readonly<Record<string, string>> = {
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
};

/** What a folder of llama.cpp's weights says of them. */
const Summary = z.strictObject({
  nodeLlamaCpp: z.string(),
  type: z.string(),
  /** How many matrices have which format: llama.cpp mixes them, and takes others where inputs are no multiple of 256. */
  matrices: z.record(z.string(), z.int().positive()),
  /** Of these matrices, quantised. */
  bytes: z.int().positive(),
  weights: z.int().positive(),
});
export type Summary = z.infer<typeof Summary>;

const SUMMARY = "llama_cpp.json";

export function readSummary(folder: string): Summary {
  return Summary.parse(parseJson(readFileSync(join(folder, SUMMARY))));
}

/** "Q3_K (32), Q4_K (22), Q5_K (2)": the formats of the matrices. */
export function formatsText({ matrices }: Summary): string {
  return Object.entries(matrices).sort().map(([format, count]) => `${format} (${count})`).join(", ");
}

/**
 * Writes the model at `path` with llama.cpp's weights to `folder`, which is replaced when it was such a one before.
 * @throws {HcinferError} "environment" without llama.cpp; "checkpoint" for a model that it is not asked to quantise; "usage" when
 *   `folder` is something else
 */
export async function quantizeModel(
  path: string,
  type: LlamaType,
  folder: string,
  threads: number,
): Promise<Summary> {
  if (existsSync(folder) && !existsSync(join(folder, SUMMARY))) {
    throw new HcinferError(
      "usage",
      `${folder} exists and holds no weights of llama.cpp; give another folder`,
    );
  }
  using checkpoint = openCheckpoint(path);
  const matrices = matricesOf(checkpoint);
  const library = llamaLibrary();
  const partial = `${resolve(folder)}.tmp`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  try {
    const [given, quantized] = [join(partial, "given.gguf"), join(partial, "quantized.gguf")];
    writeGguf(
      given,
      metadataOf(checkpoint),
      matrices.map(({ gguf, tensor: { bytes }, rows, inputs, type }) => ({
        name: gguf,
        dimensions: [inputs, rows],
        type,
        bytes: bytes.length,
        data: () => bytes,
      })),
    );
    await quantizeGguf(library, given, quantized, LLAMA_TYPES[type], threads);
    rmSync(given);
    const summary = writeDecoded(checkpoint, matrices, quantized, type, partial);
    rmSync(quantized);
    rmSync(folder, { recursive: true, force: true });
    renameSync(partial, folder);
    return summary;
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
}

interface Matrix {
  readonly name: string;
  readonly gguf: string;
  readonly tensor: StoredTensor;
  readonly rows: number;
  readonly inputs: number;
  /** ggml's number of the checkpoint's type. */
  readonly type: number;
}

/** The matrices of the layers, in the checkpoint's order. */
function matricesOf(checkpoint: Checkpoint): Matrix[] {
  const { model_type } = checkpoint.config;
  const refuse = (what: string) => {
    throw new HcinferError("checkpoint", `${checkpoint.path} is not quantised by llama.cpp here: ${what}`);
  };
  if (!ARCHITECTURES.includes(model_type)) {
    refuse(`it is of the architecture ${model_type}, expected ${ARCHITECTURES.join(" or ")}`);
  }
  return checkpoint.tensorNames.flatMap((name) => {
    const [, layer, rest] = /^model\.layers\.(\d+)\.(.+)\.weight$/.exec(name) ?? [];
    const tensor = checkpoint.tensor(name);
    const [rows, inputs] = tensor?.shape ?? [];
    if (rest === undefined || tensor === undefined || rows === undefined || inputs === undefined) return [];
    const matrix = MATRICES[rest];
    if (matrix === undefined) {
      return refuse(`it has the matrix ${name}, which no layer of these architectures has`);
    }
    const { dtype } = tensor;
    if (!isPlain(dtype)) return refuse(`${name} is ${dtype}, expected ${Object.keys(PLAIN_IDS).join(", ")}`);
    return [{ name, gguf: `blk.${layer}.${matrix}.weight`, tensor, rows, inputs, type: PLAIN_IDS[dtype] }];
  });
}

function isPlain(dtype: string): dtype is keyof typeof PLAIN_IDS {
  return Object.hasOwn(PLAIN_IDS, dtype);
}

const Geometry = z.object({ intermediate_size: z.int().positive(), rms_norm_eps: z.number() });

/** What llama.cpp wants to know of a model whose matrices it quantises: which of them get more bits depends on the layer. */
function metadataOf({ config, path }: Checkpoint): Record<string, MetadataValue> {
  const geometry = Geometry.safeParse(config);
  if (!geometry.success) {
    throw new HcinferError("checkpoint", `config.json of ${path} lacks intermediate_size or rms_norm_eps`);
  }
  const of = (key: string) => `${config.model_type}.${key}`;
  return {
    "general.architecture": { text: config.model_type },
    [of("context_length")]: { u32: config.max_position_embeddings },
    [of("embedding_length")]: { u32: config.hidden_size },
    [of("block_count")]: { u32: config.num_hidden_layers },
    [of("feed_forward_length")]: { u32: geometry.data.intermediate_size },
    [of("attention.head_count")]: { u32: config.num_attention_heads },
    [of("attention.head_count_kv")]: { u32: config.num_key_value_heads },
    [of("attention.key_length")]: { u32: config.head_dim },
    [of("attention.value_length")]: { u32: config.head_dim },
    [of("attention.layer_norm_rms_epsilon")]: { f32: geometry.data.rms_norm_eps },
  };
}

/** Writes the checkpoint with the matrices of the quantised file, as f32, and the summary. */
function writeDecoded(
  checkpoint: Checkpoint,
  matrices: readonly Matrix[],
  quantized: string,
  type: LlamaType,
  folder: string,
): Summary {
  using mapping = mapFile(quantized, "checkpoint");
  const tensors = readGguf(mapping.bytes, quantized);
  const blocks = new Map(matrices.map(({ name, gguf, rows, inputs }) => {
    const stored = tensors.get(gguf);
    const format = stored && blockFormatOf(stored.type);
    if (stored === undefined || format === undefined) {
      const found = stored === undefined ? "nothing" : `ggml's type ${stored.type}`;
      throw new HcinferError(
        "checkpoint",
        `llama.cpp made ${found} of ${name}; expected ${Object.keys(BLOCK_FORMATS).join(", ")}`,
      );
    }
    const { weights, bytes } = BLOCK_FORMATS[format];
    return [name, { format, bytes: stored.data(rows * inputs / weights * bytes) }];
  }));

  writeTensors(checkpoint, blocks, join(folder, "model.safetensors"));
  for (const file of checkpoint.files) {
    if (!checkpoint.weightFiles.includes(file)) copyFileSync(file, join(folder, basename(file)));
  }
  const counts: Record<string, number> = {};
  for (const { format } of blocks.values()) counts[format] = (counts[format] ?? 0) + 1;
  const summary = {
    nodeLlamaCpp: LLAMA_VERSION,
    type,
    matrices: counts,
    bytes: [...blocks.values()].reduce((sum, { bytes }) => sum + bytes.length, 0),
    weights: matrices.reduce((sum, { rows, inputs }) => sum + rows * inputs, 0),
  };
  writeFileSync(join(folder, SUMMARY), `${JSON.stringify(summary, null, 1)}\n`);
  return summary;
}

/** All tensors of the checkpoint, those of `blocks` as the numbers that these stand for. */
function writeTensors(
  checkpoint: Checkpoint,
  blocks: ReadonlyMap<string, { readonly format: BlockFormatName; readonly bytes: Uint8Array }>,
  path: string,
): void {
  const tensors = checkpoint.tensorNames.map((name) => {
    const { dtype, shape, bytes } = checkpoint.tensor(name)!;
    const found = blocks.get(name);
    if (found === undefined) return { name, dtype: dtype as TensorDType, shape, data: () => bytes };
    const data = () => new Uint8Array(decodeBlocks(found.format, found.bytes).buffer);
    return { name, dtype: "F32" as const, shape, data };
  });
  const layout = layoutSafetensors(tensors);
  const file = openSync(path, "w");
  try {
    writeSync(file, layout.header, 0, layout.header.length, 0);
    for (const { name, data } of tensors) {
      const bytes = data();
      writeSync(file, bytes, 0, bytes.length, layout.ranges.get(name)!.offset);
    }
  } finally {
    closeSync(file);
  }
}
