import assert from "node:assert/strict";
import { hostname } from "node:os";
import { parseProfile } from "../compiler/profile.ts";
import { measureMachine, medians } from "./machine.ts";

Deno.test("a measured profile is one, and does not tell whose machine it was", () => {
  const text = JSON.stringify(measureMachine(1).profile);
  const { name, measured, cpu } = parseProfile(text, "here.json");
  assert.ok(measured && name === cpu.name && name !== "");
  assert.ok(!text.includes(hostname()));
});

Deno.test("a figure is the median of its measurements, and those that do not agree are named", () => {
  const measured = (values: number[]) => ({ unit: "us", measure: () => values.shift()! });
  const done: number[] = [];
  const { values, disagreements } = medians([
    { what: "steady", ...measured([10, 11, 10.5, 10.2, 11.4]) },
    { what: "disturbed", ...measured([10, 10, 30, 10, 10]) },
  ], (n) => done.push(n));
  assert.deepEqual(values, [10.5, 10]);
  assert.deepEqual(disagreements, [{ what: "disturbed", unit: "us", least: 10, most: 30 }]);
  assert.deepEqual(done, Array.from({ length: 11 }, (_, n) => n));
});
