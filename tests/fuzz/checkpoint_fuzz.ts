/**
 * Checkpoints that somebody has edited, config.json, an index, safetensors headers or a tokenizer: compiled, and their
 * tokenizer read.
 */
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { COMPILE_DEFAULTS, compileModel } from "../../compiler/compile.ts";
import { genericProfile } from "../../compiler/profile.ts";
import { writeTinyModel } from "../fixtures/tiny_model.ts";
import { folderFiles } from "../../runtime/text_files.ts";
import { Tokenizer } from "../../runtime/tokenizer.ts";
import { type Case, main } from "./fuzz.ts";
import { type Json, mutate, mutateEverywhere, wordsOf } from "./mutate.ts";
import type { Random } from "./random.ts";

const MODELS = ["llama", "qwen3"] as const;
const WEIGHTS = "model.safetensors";
const JSON_FILES = ["config.json", "tokenizer.json", `${WEIGHTS}.index.json`, WEIGHTS] as const;
type JsonFile = typeof JSON_FILES[number];

/** As many tokens as tiny models have, with everything that a byte-level BPE is made of. */
function tokenizer(): Json {
  const letters = [..."abcdefghijklmnopqrstuvwxyz\u0120.,!?-0123"];
  const tokens = ["<s>", "</s>", ...letters, "th", "the"];
  return {
    version: "1.0",
    added_tokens: ["<s>", "</s>"].map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: { type: "NFC" },
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: {
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
      special_tokens: { "<s>": { id: "<s>", ids: [0], tokens: ["<s>"] } },
    },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: "<s>",
      fuse_unk: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [["t", "h"], ["th", "e"]],
    },
  };
}

function prepare(folder: string): Promise<void> {
  for (const architecture of MODELS) {
    const model = join(folder, architecture);
    writeTinyModel(model, { architecture, layers: 1, tied: architecture === "qwen3" });
    const { header } = safetensors(model);
    const names = Object.keys(header).filter((name) => name !== "__metadata__");
    const index = { metadata: {}, weight_map: Object.fromEntries(names.map((name) => [name, WEIGHTS])) };
    writeFileSync(join(model, `${WEIGHTS}.index.json`), JSON.stringify(index));
    writeFileSync(join(model, "tokenizer.json"), JSON.stringify(tokenizer()));
  }
  return Promise.resolve();
}

function safetensors(model: string): { header: { [key: string]: Json }; data: Uint8Array } {
  const bytes = readFileSync(join(model, WEIGHTS));
  const length = Number(bytes.readBigUInt64LE(0));
  return { header: JSON.parse(bytes.subarray(8, 8 + length).toString()), data: bytes.subarray(8 + length) };
}

interface Parts {
  readonly architecture: string;
  readonly documents: Record<JsonFile, Json>;
  readonly data: Uint8Array;
  readonly words: readonly string[];
}

function read(folder: string, architecture: string): Parts {
  const model = join(folder, architecture);
  const { header, data } = safetensors(model);
  const json = (name: string): Json => JSON.parse(readFileSync(join(model, name), "utf8"));
  const index = `${WEIGHTS}.index.json` as const;
  const documents = {
    "config.json": json("config.json"),
    "tokenizer.json": json("tokenizer.json"),
    [index]: json(index),
    [WEIGHTS]: header,
  };
  return { architecture, documents, data, words: [...wordsOf(Object.values(documents))] };
}

/** The document's text, now and then broken. */
function textOf(document: Json, random: Random, note: (change: string) => void): string {
  const text = JSON.stringify(document);
  if (!random.chance(0.05)) return text;
  const at = random.below(text.length);
  note(`text cut or broken at ${at}`);
  return random.chance(0.5)
    ? text.slice(0, at)
    : `${text.slice(0, at)}${random.pick([...'[]{},:"\\0-'])}${text.slice(at)}`;
}

function write(folder: string, parts: Parts, random: Random, note: (change: string) => void): void {
  const documents = structuredClone(parts.documents);
  const touched = new Set<JsonFile>();
  for (let n = 1 + random.below(2); n > 0; n--) {
    const file = random.pick(JSON_FILES);
    touched.add(file);
    const how = random.chance(0.2) ? mutateEverywhere : mutate;
    note(`${file}: ${how(documents[file], random, parts.words)}`);
  }
  for (const file of JSON_FILES) {
    const text = touched.has(file) ? textOf(documents[file], random, note) : JSON.stringify(documents[file]);
    if (file !== WEIGHTS) {
      writeFileSync(join(folder, file), text);
      continue;
    }
    const header = new TextEncoder().encode(text);
    const bytes = new Uint8Array(8 + header.length + parts.data.length);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(header.length), true);
    bytes.set(header, 8);
    bytes.set(parts.data, 8 + header.length);
    writeFileSync(join(folder, file), bytes);
  }
  if (random.chance(0.5)) rmSync(join(folder, `${WEIGHTS}.index.json`));
}

function load(folder: string): Case {
  const models = MODELS.map((architecture) => read(folder, architecture));
  const [edited, output] = [join(folder, "edited"), join(folder, "bundle")];
  return async (random, note) => {
    const parts = random.pick(models);
    note(parts.architecture);
    if (!existsSync(edited)) {
      mkdirSync(edited);
      cpSync(join(folder, parts.architecture), edited, { recursive: true });
    }
    write(edited, parts, random, note);
    const { plan } = await compileModel({
      ...COMPILE_DEFAULTS,
      weights: random.pick(["bf16", "q4", "q3"]),
      correct: random.pick(["none", "low_rank", "sparse", "both"]),
      maxRank: 4,
      threads: 1,
      profile: genericProfile(2),
      model: edited,
      output,
    });
    const tokenizer = Tokenizer.open(folderFiles(output), plan.model.vocabularySize);
    tokenizer.decode(tokenizer.encode("the cat, 12 \u00e9!"));
  };
}

if (import.meta.main) await main(import.meta.filename ?? "", { prepare, load });
