/**
 * Sequences of a paged key-value cache. A page holds PAGE_POSITIONS positions of every layer; a sequence has a list of
 * pages, which forks share. Whoever writes to a page that others hold gets a copy of it first.
 */
import { HcinferError } from "../../compiler/errors.ts";
import { PAGE_POSITIONS } from "../../compiler/memory.ts";
import type { Sequence } from "../executor.ts";

export class PagePool {
  /** Sequences that hold each page. */
  readonly #holders: Int32Array;
  /** Free pages; the last is given out next, so pages that were used before come first. */
  readonly #free: number[];

  /** @param copy copies all layers of page `from` to page `to` */
  constructor(readonly count: number, readonly copy: (from: number, to: number) => void) {
    this.#holders = new Int32Array(count);
    this.#free = Array.from({ length: count }, (_, n) => count - 1 - n);
  }

  get free(): number {
    return this.#free.length;
  }

  take(): number {
    const page = this.#free.pop();
    if (page === undefined) throw new Error("no page is free");
    this.#holders[page] = 1;
    return page;
  }

  hold(page: number): void {
    this.#holders[page]!++;
  }

  release(page: number): void {
    if (--this.#holders[page]! === 0) this.#free.push(page);
  }

  isShared(page: number): boolean {
    return this.#holders[page]! > 1;
  }

  /**
   * Free pages that a step takes which writes positions [position, end) of these sequences. What it gives back, where a
   * sequence gets shorter, counts from the next step on.
   */
  needed(
    writes: readonly { readonly sequence: PagedSequence; readonly position: number; readonly end: number }[],
  ): number {
    let grown = 0;
    const writers = new Map<number, number>();
    for (const { sequence: { pages }, position, end } of writes) {
      grown += Math.max(0, pagesOf(end) - pages.length);
      for (const page of pages.slice(Math.floor(position / PAGE_POSITIONS), pagesOf(end))) {
        writers.set(page, (writers.get(page) ?? 0) + 1);
      }
    }
    // Each writer takes a copy, but the last that holds the page keeps it.
    const copied = [...writers].map(([page, count]) => Math.min(count, this.#holders[page]! - 1));
    return copied.reduce((sum, count) => sum + count, grown);
  }
}

export class PagedSequence implements Sequence {
  readonly #pool: PagePool;
  #pages: number[];
  #length: number;
  #isOpen = true;

  constructor(pool: PagePool, pages: readonly number[] = [], length = 0) {
    this.#pool = pool;
    this.#pages = [...pages];
    this.#length = length;
    for (const page of pages) pool.hold(page);
  }

  get length(): number {
    return this.#length;
  }

  /** Pages by position / PAGE_POSITIONS. */
  get pages(): readonly number[] {
    return this.#pages;
  }

  belongsTo(pool: PagePool): boolean {
    return this.#pool === pool && this.#isOpen;
  }

  fork(): PagedSequence {
    if (!this.#isOpen) throw new HcinferError("input", "the sequence is closed");
    return new PagedSequence(this.#pool, this.#pages.slice(0, pagesOf(this.#length)), this.#length);
  }

  /** Makes positions [begin, end) this sequence's own to write; what it had cached from `begin` on is forgotten. */
  prepare(begin: number, end: number): void {
    const first = Math.floor(begin / PAGE_POSITIONS);
    for (const page of this.#pages.splice(pagesOf(end))) this.#pool.release(page);
    for (let at = first; at < this.#pages.length; at++) {
      const page = this.#pages[at]!;
      if (!this.#pool.isShared(page)) continue;
      const own = this.#pool.take();
      // Only the first page may hold positions before `begin`.
      if (at * PAGE_POSITIONS < begin) this.#pool.copy(page, own);
      this.#pool.release(page);
      this.#pages[at] = own;
    }
    while (this.#pages.length < pagesOf(end)) this.#pages.push(this.#pool.take());
    this.#length = begin;
  }

  /** Says that positions up to `end` are cached, unless the sequence was closed while they were computed. */
  advance(end: number): void {
    if (this.#isOpen) this.#length = end;
  }

  [Symbol.dispose](): void {
    this.#isOpen = false;
    for (const page of this.#pages.splice(0)) this.#pool.release(page);
    this.#length = 0;
  }
}

/** Pages that hold `length` positions. */
function pagesOf(length: number): number {
  return Math.ceil(length / PAGE_POSITIONS);
}
