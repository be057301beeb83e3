/** What the reference executor computes with: every weight of a plan in doubles, decoded once and kept. */
import { HcinferError } from "../../compiler/errors.ts";
import { type FactorDType, factorStride, RESIDUAL_WIDTHS } from "../../compiler/weights/correction.ts";
import { decodeResidual } from "../../compiler/weights/correction_reference.ts";
import { parseFormat } from "../../compiler/weights/format.ts";
import { fromBF16, widen } from "../../compiler/weights/half.ts";
import { dequantize } from "../../compiler/weights/reference.ts";
import type { ExecutableBundle } from "../executor.ts";

/** A window's residual E and the norms that choose its channels. */
export interface ResidualNumbers {
  /** E, [outputs, inputs]. */
  readonly matrix: Float64Array;
  /** [inputs] */
  readonly norm: Float64Array;
}

/** E^T ~= A B in order of importance: `a` is A transposed, [maxRank, inputs]; `b` is [maxRank, outputs]. */
export interface FactorNumbers {
  readonly maxRank: number;
  readonly a: Float64Array;
  readonly b: Float64Array;
}

export interface Numbers {
  /** The checkpoint's matrix `${path}.weight`, [rows, inputs], as the format has it. */
  matrix(path: string): Float64Array;
  /** The vector `${path}.weight`. */
  vector(path: string): Float64Array;
  residual(window: string): ResidualNumbers;
  factors(window: string): FactorNumbers;
}

/** The numbers of a bundle: what its packed bytes stand for. */
export function bundleNumbers(bundle: ExecutableBundle): Numbers {
  const { plan } = bundle;
  const tensor = (name: string) => bundle.tensor(name);
  const packed = memoised((name: string) => {
    const weight = find(plan.weights, (w) => w.tensor === name, `packed weight ${name}`);
    const format = parseFormat(weight.format);
    if (!format) throw missing(`a known format of ${name}, only ${weight.format}`);
    return dequantize(tensor(name).bytes, format, weight.rows, weight.inputs);
  });
  const store = (window: string) => find(plan.windows, (w) => w.window === window, `window ${window}`);
  return {
    matrix: memoised((path) => {
      for (const weight of plan.weights) {
        const section = weight.sections.find((s) => s.path === path);
        if (!section) continue;
        const { firstRow, rows } = section;
        return packed(weight.tensor).subarray(firstRow * weight.inputs, (firstRow + rows) * weight.inputs);
      }
      throw missing(`weight ${path}`);
    }),
    vector: memoised((path) => Float64Array.from(floats(tensor(`${path}.weight`).bytes))),
    residual: memoised((window) => {
      const { residual, inputs, outputs } = store(window);
      if (!residual) throw missing(`residual of window ${window}`);
      const part = (name: string) => tensor(`${window}.residual.${name}`).bytes;
      const stored = {
        codes: part("codes"),
        outputScale: floats(part("output_scale")),
        channelScale: floats(part("channel_scale")),
        norm: floats(part("norm")),
      };
      const width = find(RESIDUAL_WIDTHS, (w) => w === residual.width, `residual width ${residual.width}`);
      const matrix = decodeResidual(stored, width, outputs, inputs);
      return { matrix, norm: Float64Array.from(stored.norm) };
    }),
    factors: memoised((window) => {
      const { factors, inputs, outputs } = store(window);
      if (!factors) throw missing(`factors of window ${window}`);
      const decode = (name: "a" | "b", length: number) => {
        const { bytes } = tensor(`${window}.factors.${name}`);
        const scale = floats(tensor(`${window}.factors.${name}_scale`).bytes);
        return decodeFactor(bytes, factors.dtype, scale, length);
      };
      return { maxRank: factors.maxRank, a: decode("a", inputs), b: decode("b", outputs) };
    }),
  };
}

/** One factor as in compiler/weights/correction.ts: stored [maxRank, stride] -> scaled [maxRank, length]. */
function decodeFactor(
  bytes: Uint8Array,
  dtype: FactorDType,
  scale: Float32Array,
  length: number,
): Float64Array {
  const stride = factorStride(length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const element = dtype === "i8"
    ? (at: number) => view.getInt8(at)
    : (at: number) => fromBF16(view.getUint16(2 * at, true));
  const out = new Float64Array(scale.length * length);
  for (let c = 0; c < scale.length; c++) {
    for (let i = 0; i < length; i++) out[c * length + i] = scale[c]! * element(c * stride + i);
  }
  return out;
}

function floats(bytes: Uint8Array): Float32Array {
  return widen(bytes, "F32");
}

/** Every answer is computed once and kept. */
function memoised<T>(compute: (name: string) => T): (name: string) => T {
  const known = new Map<string, T>();
  return (name) => {
    const found = known.get(name);
    if (found !== undefined) return found;
    const made = compute(name);
    known.set(name, made);
    return made;
  };
}

function find<T>(list: readonly T[], wanted: (item: T) => boolean, what: string): T {
  const found = list.find(wanted);
  if (found === undefined) throw missing(what);
  return found;
}

function missing(what: string): HcinferError {
  return new HcinferError("bundle", `the bundle has no ${what}: compile it again`);
}
