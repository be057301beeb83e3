/**
 * The checkpoint as a Hugging Face folder: config.json, tensors in one safetensors file or in several named by
 * model.safetensors.index.json, and, when text is wanted, a tokenizer's files. Tensors are views of mapped files.
 */
import { existsSync, readdirSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { z } from "zod";
import { HcinferError } from "../errors.ts";
import { MOST_TEXT_BYTES, readRegularFile, readRegularText } from "../files.ts";
import { architectureFile } from "../frontend/trace.ts";
import { faultsText } from "../json.ts";
import { mapFile, type Mapping } from "../../ffi/mapping.ts";
import type { Checkpoint, CheckpointFormat } from "./checkpoint.ts";
import { parseConfig, parseJson, parseTokenEnds } from "./config.ts";
import { refusePointers } from "./lfs.ts";
import { readSafetensors, type TensorView } from "./safetensors.ts";

/** Files that make a tokenizer. */
const TOKENIZER_FILES = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "generation_config.json",
] as const;

/** Of config.json and generation_config.json, which have some kilobytes. */
const MOST_CONFIG_BYTES = 2 ** 20;

export const HUGGING_FACE: CheckpointFormat = {
  accepted:
    "a Hugging Face folder: config.json beside model.safetensors (or model.safetensors.index.json and its " +
    "parts), with tokenizer.json when text is wanted",
  isAt: (path) => existsSync(join(path, "config.json")),
  open: openFolder,
};

/** What to know when the folder's model would have no text; undefined when it has a tokenizer. */
export function withoutText(folder: string): string | undefined {
  if (!HUGGING_FACE.isAt(folder) || existsSync(join(folder, "tokenizer.json"))) return undefined;
  const other = ["tokenizer.model", "vocab.json", "vocab.txt"].find((name) => existsSync(join(folder, name)));
  const found = other === undefined
    ? ""
    : ` (its ${other} is of another kind, which transformers can convert)`;
  return `${folder} has no tokenizer.json${found}: the bundle will compute token ids, and have no text for run, ` +
    "chat and eval. Copy the model's tokenizer.json there and compile again";
}

/**
 * Throws HcinferError: "checkpoint" when config.json, an index or a safetensors header does not hold together,
 * "model-description" for an architecture without a description.
 */
function openFolder(folder: string): Checkpoint {
  const configFile = join(folder, "config.json");
  refusePointers([configFile, ...TOKENIZER_FILES.map((name) => join(folder, name))]);
  const config = parseConfig(readRegularText(configFile, MOST_CONFIG_BYTES, "checkpoint"), configFile);
  // Before gigabytes are fetched for a model that cannot be compiled.
  architectureFile(config.model_type);
  const generationFile = join(folder, "generation_config.json");
  const generation = existsSync(generationFile)
    ? readRegularText(generationFile, MOST_CONFIG_BYTES, "checkpoint")
    : undefined;
  const ends = parseTokenEnds(config, generation, generationFile);

  const parts = partsOf(folder);
  refusePointers(parts.map(({ file }) => file));
  const mappings: Mapping[] = [];
  const close = () => {
    for (const mapping of mappings) mapping.close();
  };
  try {
    const tensors = new Map<string, TensorView>();
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
        tensors.set(name, tensor);
      }
    }
    const tokenizer = TOKENIZER_FILES.filter((name) => existsSync(join(folder, name)));
    const weightFiles = parts.map((p) => p.file);
    return {
      path: folder,
      name: basename(resolve(folder)),
      config,
      ends,
      tensorNames: [...tensors.keys()],
      tensor: (name) => tensors.get(name),
      tokenizer: tokenizer.map((name) => ({
        name,
        read: () => readRegularFile(join(folder, name), MOST_TEXT_BYTES, "checkpoint"),
      })),
      weightFiles,
      files: [configFile, ...weightFiles, ...tokenizer.map((name) => join(folder, name))],
      [Symbol.dispose]: close,
    };
  } catch (error) {
    close();
    throw error;
  }
}

const Index = z.looseObject({ weight_map: z.record(z.string(), z.string()) });

interface WeightFile {
  readonly file: string;
  /** The tensors the index promises; undefined: whatever the file holds. */
  readonly names: readonly string[] | undefined;
}

function partsOf(folder: string): WeightFile[] {
  const single = join(folder, "model.safetensors");
  const index = join(folder, "model.safetensors.index.json");
  refusePointers([index]);
  if (!existsSync(index)) {
    if (existsSync(single)) return [{ file: single, names: undefined }];
    const others = readdirSync(folder).filter((f) => /\.(bin|pt|pth|gguf|h5|msgpack)$/.test(f));
    const found = others.length > 0
      ? ` (found ${others.slice(0, 4).join(", ")}, which is not read: get its safetensors files)`
      : "";
    throw new HcinferError(
      "checkpoint",
      `${folder} has no model.safetensors${found}; expected ${HUGGING_FACE.accepted}`,
    );
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
