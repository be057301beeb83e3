import assert from "node:assert/strict";
import { predictionText, predictPlan } from "./inspect.ts";
import { tinyPlan } from "../tests/fixtures/passes.ts";

Deno.test("the prediction of a plan fits 80 columns and JSON", () => {
  const prediction = predictPlan(tinyPlan());
  assert.deepEqual(prediction.modes.map((m) => m.mode), ["inline", "async", "off"]);
  assert.deepEqual(prediction.layers.map((l) => l.layer), [null, 0, 1, null].slice(0, 3));
  assert.deepEqual(JSON.parse(JSON.stringify(prediction)), prediction);
  const text = predictionText(prediction);
  for (const line of text.split("\n")) assert.ok(line.length <= 80, line);
  assert.match(text, /^predicted for generic-2-core \(not measured\), 2 threads/);
  assert.match(text, /waiting/);
});
