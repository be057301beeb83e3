import assert from "node:assert/strict";
import { z } from "zod";
import { faultsText, listOf, parseJson, tableOf } from "./json.ts";

const encode = (text: string) => new TextEncoder().encode(text);

Deno.test("JSON within its limits is parsed; brackets in strings do not count", () => {
  const value = { a: [1, 2, { b: '[[[[{{{{,,,,:\\"' }], "[": null };
  const text = encode(JSON.stringify(value));
  assert.deepEqual(parseJson(text, { values: 11, depth: 3 }), value);
  assert.throws(() => parseJson(text, { values: 11, depth: 2 }), /nested more than 2 deep/);
  assert.throws(() => parseJson(text, { values: 8, depth: 3 }), /more than 8 values/);
  assert.throws(() => parseJson(encode('{"a')), SyntaxError);
  assert.throws(() => parseJson(new Uint8Array([0x22, 0xff, 0x22])), TypeError);
});

Deno.test("megabytes of brackets are refused before they are parsed", () => {
  assert.throws(() => parseJson(encode("[".repeat(10_000_000))), /nested more than 64 deep/);
  assert.throws(() => parseJson(encode(`[${"{},".repeat(5_000_000)}{}]`)), /more than 4000000 values/);
});

Deno.test("lists and tables name the first fault, and only that", () => {
  const items = listOf(z.strictObject({ n: z.int(), t: tableOf(z.int()) }));
  assert.deepEqual(items.parse([{ n: 1, t: { x: 2 } }]), [{ n: 1, t: { x: 2 } }]);
  const bad = items.safeParse([
    { n: 1, t: {} },
    { n: 1, t: { a: 1, b: "2", c: "3" } },
    ...Array(1e6).fill({}),
  ]);
  assert.ok(!bad.success);
  assert.equal(bad.error.issues.length, 1);
  assert.match(faultsText(bad.error), /^1\.t\.b: Invalid input: expected number/);
});

Deno.test("a fault is told in few words", () => {
  const strict = z.strictObject({}).safeParse(
    Object.fromEntries(Array.from({ length: 1e5 }, (_, i) => [i, i])),
  );
  assert.ok(!strict.success && faultsText(strict.error).length < 400);
});
