/**
 * Writes the benchmark's model as GGUF version 3 (github.com/ggml-org/ggml, docs/gguf.md): architecture qwen3, all
 * matrices Q4_0, norms f32. The first 256 tokens are the alphabet of byte-level BPE, so that any text tokenises.
 */
import { closeSync, openSync, renameSync, writeSync } from "node:fs";
import { matrices, randomBits, SHAPE, vectors } from "./shape.ts";

const ALIGNMENT = 32;
const MAGIC = 0x46554747;
/** Type codes of the format: of metadata values, and of tensors. */
const VALUE = { u32: 4, i32: 5, f32: 6, text: 8, array: 9 } as const;
const TENSOR = { f32: 0, q4_0: 2 } as const;
/** A Q4_0 block: 32 weights, w = scale * (code - 8); one f16 scale, then 16 bytes of codes. */
const BLOCK_WEIGHTS = 32;
const BLOCK_BYTES = 18;
/** 0.0043 as f16: uniform codes then have a standard deviation near 0.02. */
const SCALE_F16 = 0x1c67;

class Bytes {
  readonly #parts: Uint8Array[] = [];
  #length = 0;

  get length(): number {
    return this.#length;
  }

  raw(bytes: Uint8Array): this {
    this.#parts.push(bytes);
    this.#length += bytes.length;
    return this;
  }

  u32(value: number): this {
    return this.raw(new Uint8Array(Uint32Array.of(value).buffer));
  }

  u64(value: number): this {
    return this.raw(new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  }

  f32(value: number): this {
    return this.raw(new Uint8Array(Float32Array.of(value).buffer));
  }

  text(value: string): this {
    const bytes = new TextEncoder().encode(value);
    return this.u64(bytes.length).raw(bytes);
  }

  pad(): this {
    return this.raw(new Uint8Array((ALIGNMENT - this.#length % ALIGNMENT) % ALIGNMENT));
  }

  concatenated(): Uint8Array {
    const all = new Uint8Array(this.#length);
    let at = 0;
    for (const part of this.#parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

/** The 256 printable stand-ins for bytes that byte-level BPE uses, in byte order. */
export function byteAlphabet(): string[] {
  const isPrintable = (b: number) => (b >= 33 && b < 127) || (b >= 161 && b < 173) || (b >= 174 && b < 256);
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(isPrintable(b) ? b : next++));
}

function metadata(): { bytes: Bytes; count: number } {
  const bytes = new Bytes();
  let count = 0;
  const key = (name: string, type: number): Bytes => {
    count++;
    return bytes.text(name).u32(type);
  };
  const integers: Record<string, number> = {
    "qwen3.context_length": SHAPE.context,
    "qwen3.embedding_length": SHAPE.hidden,
    "qwen3.block_count": SHAPE.layers,
    "qwen3.feed_forward_length": SHAPE.ffn,
    "qwen3.attention.head_count": SHAPE.heads,
    "qwen3.attention.head_count_kv": SHAPE.kvHeads,
    "qwen3.attention.key_length": SHAPE.headDim,
    "qwen3.attention.value_length": SHAPE.headDim,
    "tokenizer.ggml.bos_token_id": SHAPE.vocabulary - 2,
    "tokenizer.ggml.eos_token_id": SHAPE.vocabulary - 1,
    "general.alignment": ALIGNMENT,
  };
  key("general.architecture", VALUE.text).text("qwen3");
  for (const [name, value] of Object.entries(integers)) key(name, VALUE.u32).u32(value);
  key("qwen3.rope.freq_base", VALUE.f32).f32(SHAPE.ropeTheta);
  key("qwen3.attention.layer_norm_rms_epsilon", VALUE.f32).f32(SHAPE.rmsNormEps);
  key("tokenizer.ggml.model", VALUE.text).text("gpt2");
  key("tokenizer.ggml.pre", VALUE.text).text("qwen2");
  const tokens = byteAlphabet();
  while (tokens.length < SHAPE.vocabulary) tokens.push(`<t${tokens.length}>`);
  key("tokenizer.ggml.tokens", VALUE.array).u32(VALUE.text).u64(tokens.length);
  for (const token of tokens) bytes.text(token);
  key("tokenizer.ggml.token_type", VALUE.array).u32(VALUE.i32).u64(tokens.length);
  bytes.raw(new Uint8Array(new Int32Array(tokens.length).fill(1).buffer));
  key("tokenizer.ggml.merges", VALUE.array).u32(VALUE.text).u64(1).text("a b");
  return { bytes, count };
}

/** Random Q4_0 blocks of a whole matrix. */
function randomBlocks(weights: number, seed: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(weights / BLOCK_WEIGHTS * BLOCK_BYTES / 4));
  randomBits(words, seed);
  const bytes = new Uint8Array(words.buffer, 0, weights / BLOCK_WEIGHTS * BLOCK_BYTES);
  for (let block = 0; block < bytes.length; block += BLOCK_BYTES) {
    bytes[block] = SCALE_F16 & 0xff;
    bytes[block + 1] = SCALE_F16 >> 8;
  }
  return bytes;
}

/** Writes the model to `path`; returns the file's size. */
export function writeGguf(path: string): number {
  const tensors = [
    ...matrices().map((m, i) => ({
      name: m.gguf,
      dimensions: [m.columns, m.rows],
      type: TENSOR.q4_0,
      bytes: m.rows * m.columns / BLOCK_WEIGHTS * BLOCK_BYTES,
      make: () => randomBlocks(m.rows * m.columns, i + 1),
    })),
    ...vectors().map((v) => ({
      name: v.gguf,
      dimensions: [v.length],
      type: TENSOR.f32,
      bytes: v.length * 4,
      make: () => new Uint8Array(new Float32Array(v.length).fill(1).buffer),
    })),
  ];
  const { bytes: keys, count } = metadata();
  const header = new Bytes().u32(MAGIC).u32(3).u64(tensors.length).u64(count).raw(keys.concatenated());
  let offset = 0;
  for (const { name, dimensions, type, bytes } of tensors) {
    header.text(name).u32(dimensions.length);
    for (const dimension of dimensions) header.u64(dimension);
    header.u32(type).u64(offset);
    offset += Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
  }
  const partial = `${path}.tmp`;
  const file = openSync(partial, "w");
  writeSync(file, header.pad().concatenated());
  for (const tensor of tensors) writeSync(file, new Bytes().raw(tensor.make()).pad().concatenated());
  closeSync(file);
  renameSync(partial, path);
  return header.length + offset;
}
