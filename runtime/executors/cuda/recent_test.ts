import assert from "node:assert/strict";
import { Recent } from "./recent.ts";

Deno.test("what was used least recently makes room, and is disposed of; so is all at the end", () => {
  const gone: string[] = [];
  const make = (name: string) => () => ({ name, [Symbol.dispose]: () => void gone.push(name) });
  {
    using recent = new Recent<{ name: string }>(2);
    recent.get("a", make("a"));
    recent.get("b", make("b"));
    assert.equal(recent.get("a", make("other")).name, "a");
    recent.get("c", make("c"));
    assert.deepEqual(gone, ["b"]);
    assert.equal(recent.get("b", make("b again")).name, "b again");
    assert.deepEqual(gone, ["b", "a"]);
  }
  assert.deepEqual(gone, ["b", "a", "c", "b again"]);
});
