import assert from "node:assert/strict";
import fc from "fast-check";
import { type LabelOptions, type Placed, placeLabels, type Point } from "./labels.ts";

const FIGURE: LabelOptions = { width: 700, height: 500, fontSize: 11, line: [] };

function overlapping(a: Placed, b: Placed): boolean {
  return Math.abs(a.x - b.x) < (a.width + b.width) / 2 && Math.abs(a.y - b.y) < (a.height + b.height) / 2;
}

Deno.test("a label with room stands right of its point", () => {
  const [label] = placeLabels(["alone"], [{ x: 100, y: 100 }], FIGURE);
  assert.ok(label !== undefined && label.x - label.width / 2 > 100 && label.x < 150);
  assert.equal(label.y, 100);
});

Deno.test("a label at the right edge stays inside", () => {
  const [label] = placeLabels(["at the edge"], [{ x: 695, y: 100 }], FIGURE);
  assert.ok(label !== undefined && label.x + label.width / 2 <= FIGURE.width);
});

Deno.test("a label keeps off the line where it is not far to go", () => {
  const line = [{ x: 0, y: 100 }, { x: 700, y: 100 }];
  const [label] = placeLabels(["beside"], [{ x: 100, y: 100 }], { ...FIGURE, line });
  assert.ok(label !== undefined && Math.abs(label.y - 100) >= label.height / 2);
});

Deno.test("labels cover neither each other nor a point, and stay inside", () => {
  const coordinate = (most: number) => fc.double({ min: 0, max: most, noNaN: true });
  const point = fc.record({ x: coordinate(700), y: coordinate(500) });
  fc.assert(
    fc.property(fc.array(point, { maxLength: 25 }), (points: Point[]) => {
      const labels = placeLabels(points.map((_, i) => `configuration ${i}`), points, FIGURE)
        .filter((label) => label !== undefined);
      for (const [i, label] of labels.entries()) {
        assert.ok(label.x - label.width / 2 >= 0 && label.x + label.width / 2 <= FIGURE.width);
        assert.ok(label.y - label.height / 2 >= 0 && label.y + label.height / 2 <= FIGURE.height);
        for (const other of labels.slice(i + 1)) assert.ok(!overlapping(label, other));
        for (const { x, y } of points) {
          assert.ok(Math.abs(label.x - x) >= label.width / 2 || Math.abs(label.y - y) >= label.height / 2);
        }
      }
    }),
    { numRuns: 50 },
  );
});

Deno.test("a crowd of ten points at one place has all its labels", () => {
  const points = Array.from({ length: 10 }, (_, i) => ({ x: 300, y: 250 + 2 * i }));
  const labels = placeLabels(points.map((_, i) => `joint q3s + rows ${i} %`), points, FIGURE);
  assert.ok(labels.every((label) => label !== undefined));
});

Deno.test("in three columns of points it is clear whose a label is: no line to a point runs over another label or point", () => {
  const points = Array.from(
    { length: 18 },
    (_, i) => ({ x: 300 + 60 * (i % 3), y: 150 + 16 * Math.floor(i / 3) }),
  );
  const labels = placeLabels(points.map((_, i) => `joint q3s + rows 10 %, ${i}`), points, FIGURE);
  for (const [i, point] of points.entries()) {
    const { anchor } = labels[i]!;
    for (let step = 0; step <= 100; step++) {
      const x = anchor.x + (point.x - anchor.x) * step / 100,
        y = anchor.y + (point.y - anchor.y) * step / 100;
      for (const [j, other] of labels.entries()) {
        const isOver = Math.abs(x - other!.x) < other!.width / 2 &&
          Math.abs(y - other!.y) < other!.height / 2;
        assert.ok(i === j || !isOver, `${i} runs over the label of ${j}`);
        assert.ok(i === j || Math.hypot(x - points[j]!.x, y - points[j]!.y) > 3, `${i} runs over point ${j}`);
      }
    }
  }
});
