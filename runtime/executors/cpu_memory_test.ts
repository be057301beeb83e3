import assert from "node:assert/strict";
import fc from "fast-check";
import { type Buffer, type Draft, type Flight, layOut, resolve, times } from "./cpu_memory.ts";

const COUNT = 12;
const CAPACITY = 3;

const buffers = fc.array(fc.nat(200), { minLength: COUNT, maxLength: COUNT })
  .map((sizes) => sizes.map((size, id): Buffer => ({ id, bytesPerToken: size })));
/** An instruction by the buffers it touches. */
const touches = fc.record({
  ids: fc.uniqueArray(fc.nat(COUNT - 1), { minLength: 1, maxLength: 4 }),
  barrier: fc.boolean(),
});
const programs = fc.record({
  buffers,
  backbone: fc.array(touches, { maxLength: 20 }),
  flights: fc.array(
    fc.record({
      instructions: fc.array(touches, { maxLength: 4 }),
      from: fc.nat(20),
      length: fc.nat(9),
    }),
    { maxLength: 3 },
  ),
});

function draft(
  { ids, barrier }: { ids: readonly number[]; barrier: boolean },
  all: readonly Buffer[],
): Draft {
  const [a, b, x, out] = ids.map((id) => ({ buffer: all[id]!, offset: 0 }));
  return {
    op: "elementwise",
    barrier,
    after: 0,
    when: "always",
    operands: { a, aDelta0: x, b, out, bDelta1: { segment: "weights", offset: 64 } },
    integers: { kind: 0, width: 1, aStride: 0, bStride: 0 },
    reals: {},
  };
}

Deno.test("times count barriers", () => {
  const one = (barrier: boolean) => draft({ ids: [0], barrier }, [{ id: 0, bytesPerToken: 4 }]);
  assert.deepEqual(times([false, true, true, false, false, true].map(one)), [0, 0, 1, 2, 2, 2]);
});

Deno.test("buffers in use at the same time do not overlap; each starts at a multiple of 64 bytes", () => {
  fc.assert(fc.property(programs, ({ buffers, ...program }) => {
    const backbone = program.backbone.map((t) => draft(t, buffers));
    const flights = program.flights.map(({ instructions, from, length }): Flight => ({
      instructions: instructions.map((t) => draft(t, buffers)),
      from,
      to: from + length,
    }));
    const { bytes, offsets } = layOut(backbone, flights, CAPACITY);

    // The times at which each buffer is touched, without the intervals that layOut computes.
    const touched = buffers.map((): number[] => []);
    let time = 0;
    for (const { ids, barrier } of program.backbone) {
      for (const id of ids) touched[id]!.push(time);
      if (barrier) time++;
    }
    program.flights.forEach(({ instructions, from, length }) => {
      for (const { ids } of instructions) for (const id of ids) touched[id]!.push(from, from + length);
    });
    const used = buffers.filter(({ id }) => touched[id]!.length > 0);
    assert.deepEqual([...offsets.keys()].sort((a, b) => a - b), used.map(({ id }) => id));
    for (const a of used) {
      const [from, to] = [offsets.get(a.id)!, offsets.get(a.id)! + CAPACITY * a.bytesPerToken];
      assert.ok(from >= 0 && from % 64 === 0 && to <= bytes);
      for (const b of used) {
        if (a.id === b.id) continue;
        const apart = Math.max(...touched[a.id]!) < Math.min(...touched[b.id]!) ||
          Math.max(...touched[b.id]!) < Math.min(...touched[a.id]!);
        const disjoint = to <= offsets.get(b.id)! || offsets.get(b.id)! + CAPACITY * b.bytesPerToken <= from;
        assert.ok(apart || disjoint, `buffers ${a.id} and ${b.id}`);
      }
    }
  }));
});

Deno.test("memory is used again once a buffer's time is over", () => {
  const all = Array.from({ length: 6 }, (_, id): Buffer => ({ id, bytesPerToken: 64 }));
  const chain = [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]].map((ids) => draft({ ids, barrier: true }, all));
  assert.equal(layOut(chain, [], 1).bytes, 128);
  // A flight over the whole program keeps its buffer apart from all others.
  const flight = { instructions: [draft({ ids: [0], barrier: true }, all)], from: 0, to: 9 };
  assert.equal(layOut(chain, [flight], 1).bytes, 192);
});

Deno.test("resolving puts a place's offset into its buffer's memory, and leaves fixed places", () => {
  const buffer = { id: 4, bytesPerToken: 100 };
  const program: Draft[] = [{ ...draft({ ids: [0], barrier: true }, [buffer]), operands: {} } as Draft];
  const operands = { a: { buffer, offset: 12 }, out: { segment: "cache", offset: 5 }, b: undefined } as const;
  const [resolved] = resolve([{ ...program[0]!, operands } as Draft], {
    bytes: 1000,
    offsets: new Map([[4, 640]]),
  });
  assert.deepEqual(resolved?.operands, {
    a: { segment: "arena", offset: 652 },
    out: { segment: "cache", offset: 5 },
    b: undefined,
  });
});
