/**
 * Writes the benchmark's model as GGUF: architecture qwen3, all matrices Q4_0, norms f32. The first 256 tokens are the alphabet
 * of byte-level BPE, so that any text tokenises.
 */
import { BLOCK_FORMATS, PLAIN_IDS } from "../../examples/study/ggml.ts";
import { type MetadataValue, writeGguf as write } from "../../examples/study/gguf.ts";
import { matrices, randomBits, SHAPE, vectors } from "./shape.ts";

const { weights: BLOCK_WEIGHTS, bytes: BLOCK_BYTES } = BLOCK_FORMATS.Q4_0;
/** 0.0043 as f16: uniform codes then have a standard deviation near 0.02. */
const SCALE_F16 = 0x1c67;

/** The 256 printable stand-ins for bytes that byte-level BPE uses, in byte order. */
export function byteAlphabet(): string[] {
  const isPrintable = (b: number) => (b >= 33 && b < 127) || (b >= 161 && b < 173) || (b >= 174 && b < 256);
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(isPrintable(b) ? b : next++));
}

function metadata(): Record<string, MetadataValue> {
  const tokens = byteAlphabet();
  while (tokens.length < SHAPE.vocabulary) tokens.push(`<t${tokens.length}>`);
  return {
    "general.architecture": { text: "qwen3" },
    "qwen3.context_length": { u32: SHAPE.context },
    "qwen3.embedding_length": { u32: SHAPE.hidden },
    "qwen3.block_count": { u32: SHAPE.layers },
    "qwen3.feed_forward_length": { u32: SHAPE.ffn },
    "qwen3.attention.head_count": { u32: SHAPE.heads },
    "qwen3.attention.head_count_kv": { u32: SHAPE.kvHeads },
    "qwen3.attention.key_length": { u32: SHAPE.headDim },
    "qwen3.attention.value_length": { u32: SHAPE.headDim },
    "qwen3.rope.freq_base": { f32: SHAPE.ropeTheta },
    "qwen3.attention.layer_norm_rms_epsilon": { f32: SHAPE.rmsNormEps },
    "tokenizer.ggml.model": { text: "gpt2" },
    "tokenizer.ggml.pre": { text: "qwen2" },
    "tokenizer.ggml.tokens": { texts: tokens },
    "tokenizer.ggml.token_type": { i32s: new Int32Array(tokens.length).fill(1) },
    "tokenizer.ggml.merges": { texts: ["a b"] },
    "tokenizer.ggml.bos_token_id": { u32: SHAPE.vocabulary - 2 },
    "tokenizer.ggml.eos_token_id": { u32: SHAPE.vocabulary - 1 },
  };
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
  return write(path, metadata(), [
    ...matrices().map((m, i) => ({
      name: m.gguf,
      dimensions: [m.columns, m.rows],
      type: BLOCK_FORMATS.Q4_0.id,
      bytes: m.rows * m.columns / BLOCK_WEIGHTS * BLOCK_BYTES,
      data: () => randomBlocks(m.rows * m.columns, i + 1),
    })),
    ...vectors().map((v) => ({
      name: v.gguf,
      dimensions: [v.length],
      type: PLAIN_IDS.F32,
      bytes: v.length * 4,
      data: () => new Uint8Array(new Float32Array(v.length).fill(1).buffer),
    })),
  ]);
}
