/** Bundles of the bundled model, and logits that other implementations computed, for tests of executors. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Bundle, openBundle } from "../../compiler/bundle.ts";
import { COMPILE_DEFAULTS, compileModel, type CompileOptions } from "../../compiler/compile.ts";
import { genericProfile } from "../../compiler/profile.ts";
import { widen } from "../../compiler/weights/half.ts";
import { readSafetensors } from "../../compiler/weights/safetensors.ts";

export const TINY_DENSE = fileURLToPath(new URL("../../examples/models/tiny-dense", import.meta.url));

/** The uncompressed model. */
export const UNCOMPRESSED = { weights: "bf16", head: "bf16", correct: "none" } as const;

/** Compiles `model` into a temporary bundle, and removes it after `test`. */
export async function withBundle(
  model: string,
  options: Partial<CompileOptions>,
  test: (bundle: Bundle) => void | Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-"));
  try {
    const output = join(folder, "bundle");
    const defaults = { ...COMPILE_DEFAULTS, threads: 2, profile: genericProfile(2) };
    await compileModel({ ...defaults, ...options, model, output });
    using bundle = openBundle(output);
    await test(bundle);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

export interface ReferenceLogits {
  readonly tokens: Int32Array;
  /** [tokens, vocabulary], computed by transformers in float32. */
  readonly logits: Float32Array;
}

/** `reference_logits.safetensors` of a model's folder. */
export function referenceLogits(folder: string): ReferenceLogits[] {
  const file = join(folder, "reference_logits.safetensors");
  const { tensors } = readSafetensors(readFileSync(file), file);
  const all: ReferenceLogits[] = [];
  for (let prompt = 0; tensors.has(`logits_${prompt}`); prompt++) {
    const ids = new Uint8Array(tensors.get(`input_ids_${prompt}`)!.bytes);
    all.push({
      tokens: Int32Array.from(new BigInt64Array(ids.buffer), Number),
      logits: widen(tensors.get(`logits_${prompt}`)!.bytes, "F32"),
    });
  }
  return all;
}

/** ||actual - expected|| / ||expected|| */
export function relativeError(actual: Float32Array, expected: Float32Array): number {
  let error = 0, energy = 0;
  for (let i = 0; i < expected.length; i++) {
    error += (actual[i]! - expected[i]!) ** 2;
    energy += expected[i]! ** 2;
  }
  return Math.sqrt(error / energy);
}

/** The share of rows [vocabulary] whose largest entry is the same. */
export function sameArgMax(actual: Float32Array, expected: Float32Array, vocabulary: number): number {
  const argMax = (row: Float32Array) => row.reduce((best, value, i) => value > row[best]! ? i : best, 0);
  let same = 0;
  for (let start = 0; start < expected.length; start += vocabulary) {
    const row = (all: Float32Array) => argMax(all.subarray(start, start + vocabulary));
    if (row(actual) === row(expected)) same++;
  }
  return same * vocabulary / expected.length;
}
