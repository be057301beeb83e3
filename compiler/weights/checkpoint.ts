/**
 * A checkpoint: a Hugging Face folder with config.json, tensors in one safetensors file or in several named by
 * model.safetensors.index.json, and, when text is wanted, a tokenizer's files. Tensors are views of mapped files.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { basename, extname, join, resolve } from "node:path";
import { z } from "zod";
import { HcinferError } from "../errors.ts";
import { MOST_TEXT_BYTES, readRegularText } from "../files.ts";
import type { Graph } from "../ir/graph.ts";
import { faultsText } from "../json.ts";
import { mapFile, type Mapping } from "../../ffi/mapping.ts";
import { type Config, parseConfig, parseJson, parseTokenEnds, type TokenEnds } from "./config.ts";
import { expectedTensors } from "./inventory.ts";
import { readSafetensors, type TensorView } from "./safetensors.ts";

export const WEIGHT_DTYPES = ["BF16", "F16", "F32"] as const;
export type WeightDType = typeof WEIGHT_DTYPES[number];

export interface WeightTensor {
  readonly dtype: WeightDType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** Files that make a tokenizer, copied into a bundle as they are. */
const TOKENIZER_FILES = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "generation_config.json",
] as const;

const ACCEPTED = "A model is a Hugging Face folder: config.json beside model.safetensors " +
  "(or model.safetensors.index.json and its parts), with tokenizer.json when text is wanted.";

/** Of config.json and generation_config.json, which have some kilobytes. */
const MOST_CONFIG_BYTES = 2 ** 20;

export class Checkpoint implements Disposable {
  constructor(
    readonly folder: string,
    readonly config: Config,
    readonly ends: TokenEnds,
    /** bf16, f16 and f32 tensors by name. */
    readonly tensors: ReadonlyMap<string, WeightTensor>,
    /** Tensors of other data types: name -> dtype. No weight can be one. */
    readonly otherTensors: ReadonlyMap<string, string>,
    /** Paths of the tokenizer's files that are there. */
    readonly tokenizerFiles: readonly string[],
    /** Paths of the files the tensors lie in. */
    readonly weightFiles: readonly string[],
    private readonly mappings: readonly Mapping[],
  ) {}

  /** The folder's name, which stands for the model in tables. */
  get name(): string {
    return basename(resolve(this.folder));
  }

  /** The tensor `name`; checkModel has shown that every tensor of the graph is there. */
  tensor(name: string): WeightTensor {
    const found = this.tensors.get(name);
    if (found === undefined) throw new HcinferError("checkpoint", `${this.folder} has no tensor ${name}`);
    return found;
  }

  dispose(): void {
    for (const mapping of this.mappings) mapping.close();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Opens the Hugging Face folder at `folder`. Throws HcinferError("checkpoint") when it is none, or when config.json,
 * an index or a safetensors header does not hold together. Whether the tensors are those of the model is asked with
 * `checkModel`.
 */
export function openCheckpoint(folder: string): Checkpoint {
  requireFolder(folder);
  const configFile = join(folder, "config.json");
  const config = parseConfig(readRegularText(configFile, MOST_CONFIG_BYTES, "checkpoint"), configFile);
  const generationFile = join(folder, "generation_config.json");
  const generation = existsSync(generationFile)
    ? readRegularText(generationFile, MOST_CONFIG_BYTES, "checkpoint")
    : undefined;
  const ends = parseTokenEnds(config, generation, generationFile);

  const parts = weightFiles(folder);
  const mappings: Mapping[] = [];
  try {
    const tensors = new Map<string, WeightTensor>();
    const others = new Map<string, string>();
    for (const { file, names } of parts) {
      const mapping = mapFile(file, "checkpoint");
      mappings.push(mapping);
      const found = readSafetensors(mapping.bytes, file).tensors;
      for (const name of names ?? found.keys()) {
        const tensor = found.get(name);
        if (tensor === undefined) {
          throw new HcinferError(
            "checkpoint",
            `${file} lacks the tensor ${name}, which the index says it has`,
          );
        }
        if (isWeight(tensor)) tensors.set(name, tensor);
        else others.set(name, tensor.dtype);
      }
    }
    const tokenizer = TOKENIZER_FILES.map((name) => join(folder, name)).filter((file) => existsSync(file));
    const files = parts.map((p) => p.file);
    return new Checkpoint(folder, config, ends, tensors, others, tokenizer, files, mappings);
  } catch (error) {
    for (const mapping of mappings) mapping.close();
    throw error;
  }
}

/**
 * Compares the tensors with what the graph reads. Throws HcinferError("checkpoint") with one list: what is missing,
 * what is unexpected, what has another shape or data type.
 */
export function checkModel(graph: Graph, checkpoint: Checkpoint): void {
  const expected = expectedTensors(graph);
  const missing: string[] = [];
  const wrong: string[] = [];
  for (const [name, shape] of expected) {
    const tensor = checkpoint.tensors.get(name);
    const other = checkpoint.otherTensors.get(name);
    if (tensor !== undefined) {
      if (tensor.shape.join() !== shape.join()) {
        wrong.push(`${name}: found [${tensor.shape}], expected [${shape}]`);
      }
    } else if (other !== undefined) {
      wrong.push(`${name}: found ${other}, expected ${WEIGHT_DTYPES.join(", ")}`);
    } else {
      missing.push(`${name} [${shape}]`);
    }
  }
  const found = [...checkpoint.tensors.keys(), ...checkpoint.otherTensors.keys()];
  const unexpected = found.filter((name) => !expected.has(name) && !isHarmless(name, checkpoint.config));
  const parts = [list("missing", missing), list("wrong shape", wrong), list("unexpected", unexpected)];
  if (parts.every((p) => p === "")) return;
  const hint = missing.length === 1 && missing[0]?.startsWith("lm_head.weight")
    ? '\nIf the head shares the embedding, config.json needs "tie_word_embeddings": true.'
    : "";
  throw new HcinferError(
    "checkpoint",
    `the tensors of ${checkpoint.folder} are not those of graphs/${graph.architecture}.py:${
      parts.join("")
    }${hint}`,
  );
}

/** Copies of a tied head and tables that are computed anyway: nothing is lost without them. */
function isHarmless(name: string, config: Config): boolean {
  return (config.tie_word_embeddings && name === "lm_head.weight") ||
    /\.(rotary_emb\.inv_freq|attn\.masked_bias)$/.test(name);
}

const MOST_LISTED = 12;

function list(title: string, items: readonly string[]): string {
  if (items.length === 0) return "";
  const more = items.length > MOST_LISTED ? [`and ${items.length - MOST_LISTED} more`] : [];
  const lines = [...items.slice(0, MOST_LISTED), ...more].map((item) => `    ${item}`);
  return `\n  ${title} (${items.length}):\n${lines.join("\n")}`;
}

function isWeight(tensor: TensorView): tensor is WeightTensor {
  return (WEIGHT_DTYPES as readonly string[]).includes(tensor.dtype);
}

function requireFolder(folder: string): void {
  const refuse = (what: string): never => {
    throw new HcinferError("checkpoint", `${folder} ${what}\n${ACCEPTED}`);
  };
  const stat = statSync(folder, { throwIfNoEntry: false });
  if (stat === undefined) {
    const isHubName = /^[\w-]+\/[\w.-]+$/.test(folder);
    const download = ` Is it a name on the Hugging Face hub? hf download ${folder} --local-dir <folder>`;
    return refuse(`does not exist.${isHubName ? download : ""}`);
  }
  if (!stat.isDirectory()) {
    if (extname(folder).toLowerCase() === ".gguf") {
      refuse("is a GGUF file, which is not read yet; give the Hugging Face folder it was made from.");
    }
    refuse("is a file, not a folder.");
  }
  const entries = new Set(readdirSync(folder));
  if (entries.has("config.json")) return;
  if (entries.has("plan.zip")) refuse("is a bundle, which is already compiled: run it instead.");
  refuse("has no config.json.");
}

const Index = z.looseObject({ weight_map: z.record(z.string(), z.string()) });

interface WeightFile {
  readonly file: string;
  /** The tensors the index promises; undefined: whatever the file holds. */
  readonly names: readonly string[] | undefined;
}

function weightFiles(folder: string): WeightFile[] {
  const single = join(folder, "model.safetensors");
  const index = join(folder, "model.safetensors.index.json");
  if (!existsSync(index)) {
    if (existsSync(single)) return [{ file: single, names: undefined }];
    const others = readdirSync(folder).filter((f) => /\.(bin|pt|pth|gguf|h5|msgpack)$/.test(f));
    const found = others.length > 0 ? ` (found ${others.slice(0, 4).join(", ")})` : "";
    throw new HcinferError("checkpoint", `${folder} has no model.safetensors${found}.\n${ACCEPTED}`);
  }
  const parsed = Index.safeParse(parseJson(readRegularText(index, MOST_TEXT_BYTES, "checkpoint"), index));
  if (!parsed.success) {
    throw new HcinferError("checkpoint", `${index} does not fit: ${faultsText(parsed.error)}`);
  }
  const parts = new Map<string, string[]>();
  for (const [name, file] of Object.entries(parsed.data.weight_map)) {
    const names = parts.get(file);
    if (names) names.push(name);
    else parts.set(file, [name]);
  }
  return [...parts].sort(([a], [b]) => a < b ? -1 : 1).map(([file, names]) => {
    // A plain name: an index cannot point outside its folder.
    if (!/^[^/\\]+\.safetensors$/.test(file)) {
      throw new HcinferError(
        "checkpoint",
        `${index} names ${JSON.stringify(file)}, which is no file beside it`,
      );
    }
    return { file: join(folder, file), names };
  });
}
