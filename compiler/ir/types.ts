/**
 * Types of values in the graph. Shapes are row-major; `"T"` is the number of tokens in a step, the only
 * dimension not known when a model is compiled.
 */

export type DType = "f32" | "i32";

/** A dimension: a fixed size, or the number of tokens of the step. */
export type Dim = number | "T";

export interface TensorType {
  readonly shape: readonly Dim[];
  readonly dtype: DType;
}

export function tensor(dtype: DType, ...shape: Dim[]): TensorType {
  return { shape, dtype };
}

/** `[T,256] f32`: the notation of the graph's text. */
export function typeText(type: TensorType): string {
  return `[${type.shape.join(",")}] ${type.dtype}`;
}

export function sameType(a: TensorType, b: TensorType): boolean {
  return a.dtype === b.dtype && a.shape.length === b.shape.length &&
    a.shape.every((d, i) => d === b.shape[i]);
}

/** Elements of one token's slice: the product of all dimensions but `T`. */
export function elementsPerToken(type: TensorType): number {
  return type.shape.reduce<number>((n, d) => d === "T" ? n : n * d, 1);
}
