/**
 * Memory of a program: which buffer lies where in the arena. Lowering names buffers; this file finds, from the
 * instructions themselves, when each is in use, and packs buffers whose uses do not overlap into the same bytes.
 *
 * Time is counted in barriers: instructions between two barriers run at once, so their buffers never share memory. What
 * the compensation lane touches is in use from the signal that starts it to the wait that ends it.
 */
import type { InstructionWith, Operand } from "../../ffi/instructions.ts";

const ALIGNMENT = 64;

/** Memory of the arena that a lowering asked for: `bytesPerToken` for each token of the largest step. */
export interface Buffer {
  readonly id: number;
  readonly bytesPerToken: number;
}

/** Where an operand lies before the arena is laid out: a fixed place, or `offset` bytes into a buffer. */
export type Place = Operand | { readonly buffer: Buffer; readonly offset: number };
export type Draft = InstructionWith<Place>;

/** A stretch of the compensation lane and the times of the backbone between which it may run. */
export interface Flight {
  readonly instructions: readonly Draft[];
  readonly from: number;
  readonly to: number;
}

export interface ArenaLayout {
  readonly bytes: number;
  /** Byte offset of each buffer, by id. */
  readonly offsets: ReadonlyMap<number, number>;
}

interface Interval {
  readonly buffer: Buffer;
  first: number;
  last: number;
}

/** The time of each instruction: how many barriers lie before it. */
export function times(program: readonly Draft[]): number[] {
  let time = 0;
  return program.map((instruction) => instruction.barrier ? time++ : time);
}

export function layOut(
  backbone: readonly Draft[],
  flights: readonly Flight[],
  capacity: number,
): ArenaLayout {
  const intervals = new Map<number, Interval>();
  const use = (instruction: Draft, first: number, last: number) => {
    for (const place of Object.values<Place | undefined>(instruction.operands)) {
      if (place === undefined || !("buffer" in place)) continue;
      const interval = intervals.get(place.buffer.id);
      if (!interval) {
        intervals.set(place.buffer.id, { buffer: place.buffer, first, last });
      } else {
        interval.first = Math.min(interval.first, first);
        interval.last = Math.max(interval.last, last);
      }
    }
  };
  const at = times(backbone);
  backbone.forEach((instruction, n) => use(instruction, at[n] ?? 0, at[n] ?? 0));
  for (const flight of flights) {
    for (const instruction of flight.instructions) use(instruction, flight.from, flight.to);
  }
  return firstFit([...intervals.values()], capacity);
}

/** Places intervals in the order they begin, each at the lowest offset free for its whole time. */
function firstFit(intervals: readonly Interval[], capacity: number): ArenaLayout {
  const placed: { offset: number; end: number; interval: Interval }[] = [];
  const offsets = new Map<number, number>();
  let bytes = 0;
  for (const interval of [...intervals].sort((a, b) => a.first - b.first || a.buffer.id - b.buffer.id)) {
    const size = Math.ceil(interval.buffer.bytesPerToken * capacity / ALIGNMENT) * ALIGNMENT;
    let offset = 0;
    for (const other of placed) {
      const apart = other.interval.last < interval.first || interval.last < other.interval.first;
      if (!apart && other.offset < offset + size && offset < other.end) offset = other.end;
    }
    placed.push({ offset, end: offset + size, interval });
    placed.sort((a, b) => a.offset - b.offset);
    offsets.set(interval.buffer.id, offset);
    bytes = Math.max(bytes, offset + size);
  }
  return { bytes, offsets };
}

/** The program with every buffer replaced by its place in the arena. */
export function resolve(program: readonly Draft[], layout: ArenaLayout): InstructionWith<Operand>[] {
  const operand = (place: Place | undefined): Operand | undefined =>
    place === undefined || !("buffer" in place)
      ? place
      : { segment: "arena", offset: (layout.offsets.get(place.buffer.id) ?? 0) + place.offset };
  return program.map((instruction) => ({
    ...instruction,
    operands: Object.fromEntries(
      Object.entries<Place | undefined>(instruction.operands).map(([name, place]) => [name, operand(place)]),
    ),
  } as InstructionWith<Operand>));
}
