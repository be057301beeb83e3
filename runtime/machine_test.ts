import assert from "node:assert/strict";
import { hostname } from "node:os";
import { parseProfile } from "../compiler/profile.ts";
import { measureMachine } from "./machine.ts";

Deno.test("a measured profile is one, and does not tell whose machine it was", () => {
  const text = JSON.stringify(measureMachine(1));
  const { name, measured, cpu } = parseProfile(text, "here.json");
  assert.ok(measured && name === cpu.name && name !== "");
  assert.ok(!text.includes(hostname()));
});
