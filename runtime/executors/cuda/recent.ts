/** What was used last, up to a number: the least recently used makes room, and is disposed of. */
export class Recent<V extends Disposable | object> implements Disposable {
  readonly #kept = new Map<string, V>();

  constructor(readonly most: number) {}

  /** What is kept under `key`, or what `make` makes, which is kept from here on. */
  get(key: string, make: () => V): V {
    const found = this.#kept.get(key) ?? make();
    // Last in the map's order is the most recently used.
    this.#kept.delete(key);
    this.#kept.set(key, found);
    for (const [oldest, value] of this.#kept) {
      if (this.#kept.size <= this.most) break;
      this.#kept.delete(oldest);
      dispose(value);
    }
    return found;
  }

  clear(): void {
    for (const value of this.#kept.values()) dispose(value);
    this.#kept.clear();
  }

  [Symbol.dispose](): void {
    this.clear();
  }
}

function dispose(value: Disposable | object): void {
  if (Symbol.dispose in value) value[Symbol.dispose]();
}
