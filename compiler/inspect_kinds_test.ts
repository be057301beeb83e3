import assert from "node:assert/strict";
import { tinyPlan } from "../tests/fixtures/passes.ts";
import { predictPlan } from "./inspect.ts";
import { kindsOf, nodeKind } from "./inspect_kinds.ts";
import { PROFILES } from "./profile.ts";
import { timelineOf } from "./timeline.ts";

const plan = tinyPlan();
const KINDS = [
  "attention",
  "corrections",
  "down",
  "gate_up",
  "norms and the rest",
  "o",
  "output head",
  "qkv",
];

Deno.test("every node is of one kind, and kinds add up to the step, the longest first", () => {
  assert.deepEqual([...new Set(plan.graph.nodes.map(nodeKind))].sort(), KINDS);
  for (const mode of ["inline", "off"] as const) {
    const timeline = timelineOf(plan, mode, { profile: PROFILES["generic-2-core"], threads: 2 });
    const kinds = kindsOf(plan.graph, timeline);
    assert.deepEqual(
      kinds.map(({ kind }) => kind).sort(),
      KINDS.filter((kind) => mode === "inline" || kind !== "corrections"),
    );
    const sum = (of: (kind: typeof kinds[number]) => number) => kinds.reduce((n, kind) => n + of(kind), 0);
    assert.equal(sum((kind) => kind.nodes), timeline.steps.length);
    assert.ok(
      Math.abs(sum((kind) => kind.microseconds) - timeline.microseconds) < 0.05 * kinds.length + 0.02,
    );
    const times = kinds.map(({ microseconds }) => microseconds);
    assert.deepEqual(times, [...times].sort((a, b) => b - a));
  }
});

Deno.test("bytes of a kind are those that its nodes are placed with", () => {
  const kinds = predictPlan(plan).kinds;
  for (const { kind, bytesRead } of kinds) {
    const nodes = plan.graph.nodes.filter((node) => nodeKind(node) === kind);
    assert.equal(bytesRead, nodes.reduce((sum, { placement }) => sum + (placement.bytesRead ?? 0), 0), kind);
  }
  // The head reads all its rows, the embedding one.
  assert.ok(kinds.find(({ kind }) => kind === "output head")!.bytesRead > 1000);
});

Deno.test("kinds are of the default mode, or of the one that is asked for", () => {
  const asynchronous = predictPlan(plan), inline = predictPlan(plan, { kindsMode: "inline" });
  assert.deepEqual([asynchronous.kindsMode, inline.kindsMode], ["async", "inline"]);
  assert.notDeepEqual(asynchronous.kinds, inline.kinds);
  assert.equal(inline.defaultMode, "async");
});
