/**
 * Where labels of points stand in a figure: beside their points as near as there is room, so that no label covers another one
 * or a point, and few stand on the lines from labels to points. Greedy, in the order given, and some times again with all
 * others in place; in pixels, y downwards.
 */
export interface Point {
  readonly x: number;
  readonly y: number;
}

export interface Placed extends Point {
  /** The point of the label's edge that is nearest to its own point; the label's box is around `x`, `y`. */
  readonly anchor: Point;
  readonly width: number;
  readonly height: number;
}

export interface LabelOptions {
  readonly width: number;
  readonly height: number;
  readonly fontSize: number;
  /** A line to keep off where that is not far to go. */
  readonly line: readonly Point[];
}

/** Mean advance of a letter in the sans-serif fonts of browsers, in font sizes; a little more than it is. */
const LETTER = 0.6;
const LINE = 1.25;
/** Half of a point's size, with the room around it. */
const POINT = 5;
const DISTANCES = [4, 10, 18, 28, 40, 54, 70, 90, 112, 136, 164, 196, 230, 270];
const DIRECTIONS = 36;
/** What standing on a line costs, as pixels of distance: on the figure's own, on one between another label and its point. */
const ON_LINE = 24, ON_LEADER = 90;
/** What it costs when the line to the point meets another point or another such line: it is then unclear whose it is. */
const OVER_POINT = 60, OVER_LEADER = 60;
const ROUNDS = 4;
/** What standing left of the point costs: words are easiest to follow from a point on their left. */
const LEFT = 10;

interface Segment {
  readonly from: Point;
  readonly to: Point;
}

/** Places of `texts[i]` beside `points[i]`; undefined where there is no room within some hundred pixels. */
export function placeLabels(
  texts: readonly string[],
  points: readonly Point[],
  options: LabelOptions,
): (Placed | undefined)[] {
  const labels: (Label | undefined)[] = texts.map(() => undefined);
  for (let round = 0; round < ROUNDS; round++) {
    for (const [i, text] of texts.entries()) {
      labels[i] = undefined;
      labels[i] = bestLabel(text, points[i]!, points, labels.filter((label) => label !== undefined), options);
    }
  }
  return labels.map((label) => label?.place);
}

interface Label {
  readonly place: Placed;
  /** From the place to its point. */
  readonly leader: Segment;
}

/** The label that costs least beside the `others`. */
function bestLabel(
  text: string,
  point: Point,
  points: readonly Point[],
  others: readonly Label[],
  { width, height, fontSize, line }: LabelOptions,
): Label | undefined {
  const size = { width: text.length * LETTER * fontSize, height: LINE * fontSize };
  const marks = points.map((other) => ({ ...other, width: 2 * POINT, height: 2 * POINT }));
  // Points that touch this one cannot be told from it anyway.
  const strangers = marks.filter((mark) => !overlap(mark, { ...mark, ...point }));
  const parts = line.slice(1).map((to, i) => ({ from: line[i]!, to }));
  let best: Label | undefined, least = Infinity;
  for (const { place, effort } of candidates(point, size)) {
    if (effort >= least || !isInside(place, width, height)) continue;
    if (others.some((other) => overlap(place, other.place)) || marks.some((mark) => overlap(place, mark))) {
      continue;
    }
    const leader = { from: place.anchor, to: point };
    const cost = effort + (parts.some((part) => crosses(part, place)) ? ON_LINE : 0) +
      ON_LEADER * count(others, (other) => crosses(other.leader, place)) +
      ON_LEADER * count(others, (other) => crosses(leader, other.place)) +
      OVER_POINT * count(strangers, (mark) => crosses(leader, mark)) +
      OVER_LEADER * count(others, (other) => meet(leader, other.leader));
    if (cost < least) [best, least] = [{ place, leader }, cost];
  }
  return best;
}

/** Places around the point, and how far they are. */
function* candidates(
  point: Point,
  size: { readonly width: number; readonly height: number },
): Generator<{ readonly place: Placed; readonly effort: number }> {
  for (const distance of DISTANCES) {
    for (let i = 0; i < DIRECTIONS; i++) {
      const angle = 2 * Math.PI * i / DIRECTIONS;
      const reach = distance + POINT;
      // The box itself reaches farther to its sides than up and down.
      const x = point.x + Math.cos(angle) * (reach + size.width / 2);
      const y = point.y + Math.sin(angle) * (reach + size.height / 2);
      const anchor = {
        x: clamp(point.x, x - size.width / 2, x + size.width / 2),
        y: clamp(point.y, y - size.height / 2, y + size.height / 2),
      };
      yield { place: { x, y, anchor, ...size }, effort: distance + LEFT * (1 - Math.cos(angle)) / 2 };
    }
  }
}

function isInside(box: Box, width: number, height: number): boolean {
  return box.x >= box.width / 2 && box.x <= width - box.width / 2 &&
    box.y >= box.height / 2 && box.y <= height - box.height / 2;
}

function count<T>(all: readonly T[], is: (one: T) => boolean): number {
  return all.reduce((sum, one) => sum + (is(one) ? 1 : 0), 0);
}

function clamp(value: number, least: number, most: number): number {
  return Math.min(most, Math.max(least, value));
}

type Box = Omit<Placed, "anchor">;

function overlap(a: Box, b: Box): boolean {
  return Math.abs(a.x - b.x) < (a.width + b.width) / 2 && Math.abs(a.y - b.y) < (a.height + b.height) / 2;
}

/** Whether a segment enters a box (Liang and Barsky's clipping). */
function crosses({ from, to }: Segment, box: Box): boolean {
  let [enter, leave] = [0, 1];
  for (
    const [start, step, middle, half] of [
      [from.x, to.x - from.x, box.x, box.width / 2],
      [from.y, to.y - from.y, box.y, box.height / 2],
    ] as const
  ) {
    const [near, far] = [middle - half - start, middle + half - start];
    if (step === 0) {
      if (near > 0 || far < 0) return false;
      continue;
    }
    enter = Math.max(enter, Math.min(near / step, far / step));
    leave = Math.min(leave, Math.max(near / step, far / step));
  }
  return enter <= leave;
}

/** Whether two segments cross; those that only touch do not. */
function meet(a: Segment, b: Segment): boolean {
  return side(a, b.from) * side(a, b.to) < 0 && side(b, a.from) * side(b, a.to) < 0;
}

/** On which side of the segment's line the point lies: its sign. */
function side({ from, to }: Segment, { x, y }: Point): number {
  return (to.x - from.x) * (y - from.y) - (to.y - from.y) * (x - from.x);
}
