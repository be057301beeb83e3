import assert from "node:assert/strict";
import { HcinferError } from "../../compiler/errors.ts";
import { PAGE_POSITIONS as PAGE } from "../../compiler/memory.ts";
import { PagedSequence, PagePool } from "./pages.ts";

/** A pool that remembers which pages were copied, and writes of a step all at once, as an executor has them. */
function setup(count: number) {
  const copies: [number, number][] = [];
  const pool = new PagePool(count, (from, to) => copies.push([from, to]));
  const write = (...writes: [sequence: PagedSequence, position: number, end: number][]) => {
    const needed = pool.needed(writes.map(([sequence, position, end]) => ({ sequence, position, end })));
    if (needed > pool.free) return { needed, taken: 0 };
    const before = pool.free;
    for (const [sequence, position, end] of writes) {
      sequence.prepare(position, end);
      sequence.advance(end);
    }
    return { needed, taken: before - pool.free };
  };
  return { pool, copies, write, sequence: () => new PagedSequence(pool) };
}

Deno.test("a sequence takes pages as it grows, and gives back those behind its new end", () => {
  const { pool, write, sequence } = setup(4);
  const one = sequence();
  assert.deepEqual(write([one, 0, 1]), { needed: 1, taken: 1 });
  assert.deepEqual(write([one, 1, PAGE]), { needed: 0, taken: 0 });
  assert.deepEqual(write([one, PAGE, 3 * PAGE + 1]), { needed: 3, taken: 3 });
  assert.equal(new Set(one.pages).size, 4);
  assert.deepEqual(write([one, 4 * PAGE, 4 * PAGE + 1]), { needed: 1, taken: 0 });
  assert.equal(one.length, 3 * PAGE + 1);
  const [first] = one.pages;
  assert.deepEqual(write([one, 5, PAGE]), { needed: 0, taken: -3 });
  assert.deepEqual([...one.pages], [first]);
  one[Symbol.dispose]();
  assert.deepEqual([pool.free, one.length], [4, 0]);
  one[Symbol.dispose]();
  assert.equal(pool.free, 4);
});

Deno.test("who writes to a shared page copies it, unless nothing of it stays; the last holder keeps it", () => {
  const { pool, copies, write, sequence } = setup(8);
  const one = sequence();
  write([one, 0, PAGE + 10]);
  const [full, half] = one.pages;
  const two = one.fork(), three = two.fork();
  assert.deepEqual([pool.free, two.length, three.pages], [6, PAGE + 10, one.pages]);
  assert.deepEqual(write([two, PAGE + 10, PAGE + 11]), { needed: 1, taken: 1 });
  assert.deepEqual(copies, [[half, two.pages[1]]]);
  assert.deepEqual([two.pages[0], one.pages[1]], [full, half]);
  // From the page's first position on nothing stays.
  assert.deepEqual(write([three, PAGE, PAGE + 1]), { needed: 1, taken: 1 });
  assert.equal(copies.length, 1);
  // The other holders of the half page are gone.
  assert.deepEqual(write([one, PAGE + 10, PAGE + 11]), { needed: 0, taken: 0 });
  assert.equal(one.pages[1], half);
  // At the edge of a page a fork shares all that is full, and takes the next for itself.
  const four = sequence();
  write([four, 0, PAGE]);
  const five = four.fork();
  assert.deepEqual(write([five, PAGE, PAGE + 1], [four, PAGE, PAGE + 1]), { needed: 2, taken: 2 });
  assert.equal(copies.length, 1);
  for (const each of [three, one, five, two, four]) each[Symbol.dispose]();
  assert.equal(pool.free, 8);
});

Deno.test("two that share a page and write to it in one step need one page, not two", () => {
  const { pool, copies, write, sequence } = setup(2);
  const one = sequence();
  write([one, 0, 10]);
  const two = one.fork();
  assert.deepEqual(write([one, 10, 11], [two, 10, 11]), { needed: 1, taken: 1 });
  assert.equal(copies.length, 1);
  assert.notEqual(one.pages[0], two.pages[0]);
  assert.equal(pool.free, 0);
  // A third holder, which does not write, keeps what was shared.
  const three = two.fork();
  assert.deepEqual(write([two, 11, 12]), { needed: 1, taken: 0 });
  three[Symbol.dispose]();
  assert.deepEqual(write([two, 11, 12]), { needed: 0, taken: 0 });
});

Deno.test("a fork holds no pages behind its end, and a closed sequence has no forks", () => {
  const { pool, write, sequence } = setup(4);
  const one = sequence();
  write([one, 0, 4 * PAGE]);
  // A step that did not end leaves its pages behind the sequence's end.
  one.prepare(10, 4 * PAGE);
  const two = one.fork();
  assert.deepEqual([two.length, two.pages.length, one.pages.length], [10, 1, 4]);
  one[Symbol.dispose]();
  assert.equal(pool.free, 3);
  assert.ok(two.belongsTo(pool) && !one.belongsTo(pool));
  assert.ok(!two.belongsTo(setup(4).pool));
  assert.throws(() => one.fork(), HcinferError);
});
