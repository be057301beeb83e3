/** Numbers that are read one by one; 0 where there are no more, which is what they shrink to. */
export class Choices {
  readonly #numbers: readonly number[];
  #next = 0;

  constructor(numbers: readonly number[]) {
    this.#numbers = numbers;
  }

  /** 0 to `count` - 1. */
  below(count: number): number {
    return (this.#numbers[this.#next++] ?? 0) % count;
  }

  of<T>(list: readonly T[]): T {
    const chosen = list[this.below(list.length)];
    if (chosen === undefined) throw new Error("nothing to choose from");
    return chosen;
  }
}

/** Lehmer's generator: uniform in [0, 1). */
export function uniform(seed: number): () => number {
  let state = seed % 0x7ffffffe + 1;
  return () => {
    state = state * 48271 % 0x7fffffff;
    return state / 0x7fffffff;
  };
}

/** Numbers of variance 1: the sum of four uniforms is normal enough. */
export function normals(seed: number, length: number, deviation = 1): Float32Array<ArrayBuffer> {
  const next = uniform(seed);
  return Float32Array.from(
    { length },
    () => deviation * Math.sqrt(3) * (next() + next() + next() + next() - 2),
  );
}
