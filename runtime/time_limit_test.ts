import assert from "node:assert/strict";
import { performance } from "node:perf_hooks";
import { HcinferError } from "../compiler/errors.ts";
import { secondsFor, type TimeLimit, withinTime } from "./time_limit.ts";

function limit(seconds: number): TimeLimit {
  return { seconds, kind: "input", doing: "the test", advice: "expect this" };
}

function stopped(error: unknown): boolean {
  return error instanceof HcinferError && error.kind === "input" &&
    /^the test took more than [0-9.]+ s and was stopped: expect this$/.test(error.message);
}

Deno.test("what work returns and throws passes through", () => {
  const value = { a: 1 };
  assert.equal(withinTime(limit(1), () => value), value);
  assert.equal(withinTime(limit(1), () => undefined), undefined);
  const own = new RangeError("own");
  assert.throws(() =>
    withinTime(limit(1), () => {
      throw own;
    }), (error) => error === own);
  const recursive = (): number => recursive() + 1;
  assert.throws(() => withinTime(limit(1), recursive), RangeError);
});

Deno.test("loops, recursion, expressions and handlers are all stopped in time", () => {
  const fibonacci = (n: number): number => n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
  const endless: Readonly<Record<string, () => unknown>> = {
    loop: () => {
      while (performance.now() > 0);
    },
    recursion: () => fibonacci(60),
    expression: () => /^(a+)+$/.test("a".repeat(60) + "b"),
    handlers: () => {
      for (;;) {
        try {
          fibonacci(60);
        } catch {
          // What is stopped cannot go on in a handler.
        }
      }
    },
    allocation: () => {
      for (const all: number[][] = [];; all.length %= 1000) all.push([all.length]);
    },
  };
  for (const [name, work] of Object.entries(endless)) {
    const began = performance.now();
    assert.throws(() => withinTime(limit(0.2), work), stopped, name);
    assert.ok(performance.now() - began < 2000, name);
  }
  assert.equal(withinTime(limit(1), () => "fine"), "fine");
});

Deno.test("work that ends close to its limit ends the call, one way or the other, and not the program", async () => {
  let late = 0;
  for (let i = 0; i < 16; i++) {
    const until = performance.now() + 149 + i / 8;
    try {
      withinTime(limit(0.15), () => {
        while (performance.now() < until);
      });
    } catch (error) {
      assert.ok(stopped(error));
      late++;
    }
  }
  assert.equal(late, 16);
  await new Promise((resolve) => setTimeout(resolve, 10));
});

Deno.test("a call costs little, and longer texts get more time", () => {
  const began = performance.now();
  for (let i = 0; i < 100; i++) withinTime(limit(1), () => i);
  assert.ok(performance.now() - began < 100);
  assert.ok(secondsFor(200_000) >= secondsFor(0) + 5);
});
