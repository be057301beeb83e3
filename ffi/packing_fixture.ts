/** Inputs for the tests of packing, and a digest of everything packing computes from some of them. */
import { createHash } from "node:crypto";
import { RESIDUAL_WIDTHS } from "../compiler/weights/correction.ts";
import { FORMAT_KINDS, GROUP_SIZES, type WeightFormat } from "../compiler/weights/format.ts";
import { toBF16, toF16 } from "../compiler/weights/half.ts";
import { checksum, errorOf, factorise, packResidual, quantize, type SourceType } from "./packing.ts";

export const FORMATS: readonly WeightFormat[] = FORMAT_KINDS.flatMap((kind): WeightFormat[] =>
  kind === "bf16" ? [{ kind }] : GROUP_SIZES.map((group) => ({ kind, group }))
);

/** Normal numbers from a fixed sequence (Lehmer's generator, Box and Muller's transform). */
export function normals(length: number, seed: number): Float32Array<ArrayBuffer> {
  let state = seed * 2 + 1;
  const uniform = () => (state = state * 48271 % 2147483647) / 2147483647;
  return Float32Array.from(
    { length },
    () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()),
  );
}

/** The bytes of a checkpoint's tensor with these values, rounded to its type. */
export function bytesOf(values: Float32Array, type: SourceType): Uint8Array<ArrayBuffer> {
  if (type === "F32") return new Uint8Array(values.slice().buffer);
  return new Uint8Array(Uint16Array.from(values, type === "F16" ? toF16 : toBF16).buffer);
}

/** A hash of every byte that packing computes from fixed inputs with ragged shapes. */
export function digest(threads: number): string {
  const hash = createHash("sha256");
  const [rows, inputs] = [83, 150];
  const weights = normals(rows * inputs, 21);
  const error = new Float32Array(rows * inputs);
  for (const type of ["F32", "F16", "BF16"] as const) {
    const source = bytesOf(weights, type);
    for (const format of FORMATS) {
      const { packed, errorEnergy, energy } = quantize(source, type, rows, inputs, format, threads);
      errorOf(source, type, packed, format, rows, inputs, error, threads);
      hash.update(packed).update(new Uint8Array(error.buffer)).update(`${errorEnergy} ${energy}`);
    }
  }
  for (const width of RESIDUAL_WIDTHS) {
    const { codes, outputScale, channelScale, norm } = packResidual(weights, rows, inputs, width, threads);
    hash.update(codes);
    for (const values of [outputScale, channelScale, norm]) hash.update(new Uint8Array(values.buffer));
  }
  for (const dtype of ["i8", "bf16"] as const) {
    for (const [outputs, width] of [[rows, inputs], [inputs, rows]] as const) {
      const { a, b, aScale, bScale, spectrum, energy } = factorise(
        weights,
        outputs,
        width,
        20,
        dtype,
        threads,
      );
      hash.update(a).update(b).update(`${energy}`);
      for (const values of [aScale, bScale, spectrum]) hash.update(new Uint8Array(values.buffer));
    }
  }
  return hash.update(`${checksum(bytesOf(weights, "F32"), threads)}`).digest("hex");
}

if (import.meta.main) console.log(digest(2));
