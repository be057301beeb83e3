import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../compiler/errors.ts";
import { StopTexts } from "./stop_texts.ts";

function filtered(stops: readonly string[], pieces: readonly string[]) {
  const texts = new StopTexts(stops);
  const shown = pieces.map((piece) => texts.push(piece));
  shown.push(texts.end());
  return { text: shown.join(""), reached: texts.reached, shown };
}

Deno.test("a stop is never shown, however pieces cut it", () => {
  const letters = (maxLength: number) => fc.string({ unit: fc.constantFrom("a", "b"), maxLength });
  const stop = letters(4).filter((text) => text !== "");
  fc.assert(fc.property(fc.array(stop, { maxLength: 3 }), fc.array(letters(3)), (stops, pieces) => {
    const whole = pieces.join("");
    const { text, reached } = filtered(stops, pieces);
    assert.equal(reached, stops.some((stop) => whole.includes(stop)));
    if (!reached) return assert.equal(text, whole);
    for (const stop of stops) assert.ok(!text.includes(stop), `${stop} in ${text}`);
    // Right after what is shown, one stands.
    assert.ok(whole.startsWith(text));
    assert.ok(stops.some((stop) => whole.startsWith(stop, text.length)));
  }));
});

Deno.test("text waits only while it may be the beginning of a stop", () => {
  assert.deepEqual(filtered(["\nUser:"], ["Hi", "\nU", "s", " there\n"]).shown, [
    "Hi",
    "",
    "",
    "\nUs there",
    "\n",
  ]);
  assert.deepEqual(filtered([], ["a", "b"]).shown, ["a", "b", ""]);
  assert.throws(() => new StopTexts([""]), HcinferError);
});
