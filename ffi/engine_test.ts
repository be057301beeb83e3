import assert from "node:assert/strict";
import { availableParallelism } from "node:os";
import { HcinferError } from "../compiler/errors.ts";
import { argmax, Engine, instructionSet, tokenLoss } from "./engine.ts";
import {
  add,
  at,
  instruction,
  machine,
  type MachineOptions,
  signal,
  TOKENS,
  wait,
  WIDTH,
} from "../tests/fixtures/engine.ts";
import type { Instruction } from "./instructions.ts";

const THREADS = [1, 2, 4];
const DONE = { status: "done" };
const all = (values: Float32Array, expected: number) => values.every((v) => v === expected);

Deno.test("a program runs in order, each instruction after what it reads", () => {
  for (const threads of THREADS) {
    // Each adds 1 to what the one before made: a chain that any overtaking breaks.
    const length = 60;
    const program = Array.from({ length }, (_, n) => add(1 + n, 0, 2 + n));
    using m = machine([program], { threads: [threads], bytes: { arena: 512 * (length + 2) } });
    m.value(0).fill(1);
    for (let round = 0; round < 40; round++) {
      m.value(1).fill(round);
      assert.deepEqual(m.step(), DONE);
      assert.ok(all(m.value(1 + length), round + length));
    }
  }
});

Deno.test("lanes meet at events", () => {
  // 1 = 0 + 0; the other lane makes 2 = 1 + 0; a third 4 = 2 + 2; 3 = 2 + 2 + 4 needs all of them.
  const lanes = [
    [add(0, 0, 1), signal(0), wait(2), add(2, 4, 3)],
    [wait(0), add(1, 0, 2), signal(1)],
    [wait(1), add(2, 2, 4), signal(2)],
  ];
  for (const threads of [[1, 1, 1], [2, 1, 2], [1, availableParallelism() + 1, 1]]) {
    using m = machine(lanes, { threads });
    for (let round = 0; round < 100; round++) {
      m.value(0).fill(round);
      m.step();
      assert.ok(all(m.value(3), 9 * round), `round ${round}`);
    }
  }
});

Deno.test("the number of a step is in the mailbox, and grows over engines that share it", () => {
  const lanes = [[signal(0)], [wait(0)]];
  using m = machine(lanes);
  using next = new Engine({
    lanes: lanes.map((program) => ({ program, threads: 1 })),
    memory: m.memory,
    capacity: 1,
  });
  const words = new BigUint64Array(m.memory.mailbox.bytes.buffer, m.memory.mailbox.bytes.byteOffset, 32);
  const counts = { tokens: 1, rows: 0, tiles: 0, mode: "decode" } as const;
  for (let n = 1n; n < 10n; n++) {
    (n % 2n === 1n ? m.engine : next).step(counts);
    assert.deepEqual([words[8], words[16]], [n, n]);
  }
});

Deno.test("what runs only as decode is skipped in a prefill step, and so is a sparse delta", () => {
  const sizes = { kind: 3, width: WIDTH, aStride: WIDTH, bStride: WIDTH };
  const operands = { a: at(0), aLowRank: at(512), aSparse: at(1024), out: at(1536) };
  const program = [instruction("elementwise", operands, sizes, {}), add(0, 0, 4, { when: "decode" })];
  for (const threads of THREADS) {
    using m = machine([program], { threads: [threads] });
    [1, 10, 100].forEach((value, n) => m.value(n).fill(value));
    m.step({ mode: "prefill" });
    assert.ok(all(m.value(3), 11) && all(m.value(4), 0));
    m.step({ mode: "decode" });
    assert.ok(all(m.value(3), 111) && all(m.value(4), 2));
  }
});

Deno.test("rows are those that the step names", () => {
  const sizes = { kind: 3, width: WIDTH, aStride: WIDTH, bStride: 0 };
  const operands = { rows: at(0, "step"), a: at(0), out: at(512) };
  const program = [instruction("elementwise", operands, sizes, {}, { over: "rows" })];
  using m = machine([program], { bytes: { step: 64 } });
  const rows = new Int32Array(m.memory.step.bytes.buffer, m.memory.step.bytes.byteOffset, TOKENS);
  for (let t = 0; t < TOKENS; t++) m.value(0).fill(t + 1, t * WIDTH, (t + 1) * WIDTH);
  const first = () => Array.from({ length: TOKENS }, (_, t) => m.value(1)[t * WIDTH]);
  m.step({ rows: 0 });
  assert.deepEqual(first(), [0, 0, 0]);
  rows.set([2, 0]);
  m.step({ rows: 2 });
  assert.deepEqual(first(), [3, 1, 0]);
  // A number that is no row reads row 0, and nothing outside.
  rows.set([-1, 2 ** 31 - 1, TOKENS]);
  m.step({ rows: 3 });
  assert.deepEqual(first(), [1, 1, 1]);
});

Deno.test("an instruction waits for the one it comes after, without a barrier", () => {
  // 1 = 0 + 0 beside unrelated work; 2 = 1 + 0 waits for 1 alone.
  const unrelated = add(4, 4, 5, { barrier: false });
  const program = [add(0, 0, 1, { barrier: false }), unrelated, add(1, 0, 2, { awaits: 2 }), add(2, 0, 3)];
  for (const threads of THREADS) {
    using m = machine([program], { threads: [threads] });
    for (let round = 0; round < 100; round++) {
      m.value(0).fill(round);
      m.step();
      assert.ok(all(m.value(3), 4 * round), `${threads} threads, round ${round}`);
    }
  }
});

Deno.test("the barrier of what continues earlier work is met in steps that skip it", () => {
  for (const skipped of [{ when: "decode" }, { over: "rows" }] as const) {
    const program = [add(0, 0, 1, { barrier: false }), add(0, 0, 2, { awaits: 1, ...skipped }), add(1, 0, 3)];
    using m = machine([program], { threads: [3] });
    for (let round = 0; round < 100; round++) {
      m.value(0).fill(round);
      m.step({ mode: "prefill" });
      assert.ok(all(m.value(3), 3 * round), `round ${round}`);
    }
  }
});

Deno.test("what comes after a skipped instruction does not wait for it", () => {
  const program = [
    add(0, 0, 1, { barrier: false, when: "decode" }),
    add(0, 0, 2, { barrier: false, when: "decode", awaits: 1, over: "rows" }),
    add(0, 0, 3),
  ];
  using m = machine([program], { threads: [2] });
  for (
    const counts of [{ mode: "prefill" }, { mode: "decode" }, { rows: 2 }, { tokens: 0, rows: 2 }] as const
  ) {
    assert.deepEqual(m.step(counts), DONE);
  }
});

Deno.test("the abort flag ends a step wherever its threads are, and the next one works", async () => {
  // Enough work for the flag to come in the middle of it.
  const long = Array.from({ length: 20_000 }, () => add(0, 0, 1));
  const other = long.map(() => add(0, 0, 4));
  const lanes = [[...long, signal(0), wait(1), add(2, 2, 3)], [wait(0), ...other, add(0, 0, 2), signal(1)]];
  for (const threads of [[1, 1], [2, 2]]) {
    using m = machine(lanes, { threads });
    m.value(0).fill(1);
    for (const delay of [0, 1, 5]) {
      m.abort(true);
      assert.deepEqual(m.step(), { status: "aborted" });
      m.abort(false);
      const running = m.engine.stepAsync({ tokens: TOKENS, rows: 0, tiles: 0, mode: "decode" });
      await new Promise((resolve) => setTimeout(resolve, delay));
      m.abort(true);
      assert.ok(["aborted", "done"].includes((await running).status));
      m.abort(false);
      m.value(3).fill(0);
      assert.deepEqual(m.step(), DONE);
      assert.ok(all(m.value(3), 4));
    }
  }
});

Deno.test("closing an engine ends a step that runs, and waits for it", async () => {
  const lanes = [Array.from({ length: 200_000 }, () => add(0, 0, 1))];
  for (let round = 0; round < 5; round++) {
    using m = machine(lanes, { threads: [2] });
    const running = m.engine.stepAsync({ tokens: TOKENS, rows: 0, tiles: 0, mode: "decode" });
    if (round > 0) await new Promise((resolve) => setTimeout(resolve, round));
    const began = performance.now();
    m.engine.close();
    assert.ok(performance.now() - began < 1000);
    assert.ok(["aborted", "done"].includes((await running).status));
  }
});

Deno.test("while a step runs the engine starts no other", async () => {
  const lanes = [Array.from({ length: 20_000 }, () => add(0, 0, 1))];
  using m = machine(lanes, { threads: [2] });
  const counts = { tokens: TOKENS, rows: 0, tiles: 0, mode: "decode" } as const;
  let ticks = 0;
  const timer = setInterval(() => ticks++, 0);
  const running = m.engine.stepAsync(counts);
  assert.throws(() => m.step(), /a step is running/);
  await assert.rejects(m.engine.stepAsync(counts), /a step is running/);
  assert.deepEqual(await running, DONE);
  clearInterval(timer);
  assert.ok(ticks > 0, "JavaScript went on");
  assert.deepEqual(m.step(), DONE);
});

Deno.test("counts beyond the capacity are refused", () => {
  using m = machine([[add(0, 0, 1)]]);
  for (
    const counts of [{ tokens: TOKENS + 1 }, { rows: TOKENS + 1 }, { tiles: TOKENS + 1 }, { tokens: -1 }]
  ) {
    assert.throws(() => m.step(counts), RangeError);
  }
});

Deno.test("a key or value that f16 does not hold is named", () => {
  const [headDim, layer] = [16, 7];
  const sizes = { heads: 1, kvHeads: 1, headDim, qStride: headDim, kStride: headDim, vStride: headDim };
  const pages = { pageCount: 2, mostSequences: 1, mostPages: 2, context: 128 };
  const [q, k, v, out, positions, sequences] = [0, 256, 512, 768, 0, 64].map((offset, n) =>
    at(offset, n < 4 ? "arena" : "step")
  );
  const heads = instruction(
    "append",
    {
      ...{ q, k, v, out, positions, sequences, pages: at(128, "step") },
      ...{ cacheK: at(0, "cache"), cacheV: at(4096, "cache") },
    },
    { ...sizes, ...pages, layer },
    { qEpsilon: 0, kEpsilon: 0 },
  );
  using m = machine([[heads]], { bytes: { cache: 8192, step: 192 }, threads: [2] });
  const x = new Float32Array(m.memory.arena.bytes.buffer, m.memory.arena.bytes.byteOffset, 256);
  new Int32Array(m.memory.step.bytes.buffer, m.memory.step.bytes.byteOffset, 48).set([60, 63, 64], 0);
  new Int32Array(m.memory.step.bytes.buffer, m.memory.step.bytes.byteOffset, 48).set([1, 0], 32);
  const [keys, values] = [64, 128];
  const overflow = (token: number, what: string) => ({ status: "overflow", layer, token, what });
  assert.deepEqual(m.step(), DONE);
  x[keys + 2 * headDim + 3] = -65519; // rounds to the largest
  assert.deepEqual(m.step(), DONE);
  x[values + 2 * headDim + 15] = 65520;
  assert.deepEqual(m.step(), overflow(2, "value"));
  x[keys + 2 * headDim] = -Infinity;
  assert.deepEqual(m.step(), overflow(2, "key"));
  x[values + headDim + 1] = NaN;
  assert.deepEqual(m.step(), overflow(1, "value"));
  assert.deepEqual(m.step({ tokens: 1 }), DONE);
});

Deno.test("the trace has a time for every instruction", () => {
  using m = machine([[add(0, 0, 1), add(1, 0, 2)]]);
  assert.deepEqual([...m.engine.trace()], [0, 0]);
  m.step();
  assert.ok(m.engine.trace().every((time) => time >= 0));
  assert.ok(m.engine.scratchBytes > 0);
});

function refused(
  lanes: readonly (readonly Instruction[])[],
  pattern: RegExp,
  options: MachineOptions = {},
  kind = "bundle",
): void {
  assert.throws(() => machine(lanes, options)[Symbol.dispose](), (error) => {
    assert.ok(error instanceof HcinferError && error.kind === kind, String(error));
    assert.match(error.message, pattern);
    return true;
  });
}

Deno.test("waiting for an instruction that may not be waited for is refused", () => {
  const loose = { barrier: false };
  refused([[add(0, 0, 1), add(0, 0, 2, { awaits: 2 })]], /lane 0, instruction 1 .*no such instruction/);
  refused([[add(0, 0, 1, { awaits: -1 })]], /lane 0, instruction 0 .*no such instruction/);
  refused([[add(0, 0, 1), add(0, 0, 2, { awaits: 1 })]], /the barrier of instruction 0 lies between/);
  refused([[add(0, 0, 1, loose), add(0, 0, 2), add(1, 0, 3, { awaits: 2 })]], /barrier of instruction 1/);
  refused([[signal(0, loose), add(0, 0, 1, { awaits: 1 })]], /that is an event/);
  refused([[add(0, 0, 1, loose), signal(0, { awaits: 1 })]], /an event comes after nothing/);
  for (const skipped of [{ when: "decode" }, { over: "rows" }] as const) {
    refused([[add(0, 0, 1, { ...loose, ...skipped }), add(1, 0, 2, { awaits: 1 })]], /does not run whenever/);
  }
});

Deno.test("lanes that would wait for ever are refused", () => {
  refused(
    [[signal(0)], [signal(0)]],
    /lane 1, instruction 0 signals the event that lane 0, instruction 0 signals/,
  );
  refused([[wait(0)]], /lane 0, instruction 0 waits for an event that no lane signals/);
  refused([[wait(0), signal(0)]], /lane 0, instruction 0 waits for ever .* lane 0, instruction 1/);
  const circle = [[add(0, 0, 1), wait(1), signal(0)], [wait(0), signal(1)]];
  refused(circle, /lane 0, instruction 1 waits for ever .* lane 1, instruction 1/);
  refused([[signal(0, { when: "decode" })], [wait(0)]], /waits for ever in a prefill step/);
  refused([[signal(0, { over: "rows" })], [wait(0)]], /no matter of rows/);
});

Deno.test("events lie in the mailbox, and nothing else does", () => {
  const event = (offset: number, segment: "mailbox" | "arena" = "mailbox") =>
    instruction("signal", { event: at(offset, segment) }, {}, {});
  refused([[event(128, "arena")]], /outside the mailbox/);
  refused([[event(64)]], /before the mailbox's events/);
  refused([[event(132)]], /132, which is no multiple of 8/);
  refused([[event(1024)]], /event has 8 bytes from 1024, outside its memory: mailbox has 1024/);
  const sizes = { kind: 3, width: 1, aStride: 0, bStride: 0 };
  refused([[instruction("elementwise", { a: at(0), out: at(128, "mailbox") }, sizes, {})]], /only events/);
  refused([[add(0, 0, 1)]], /mailbox has 64 bytes/, { bytes: { mailbox: 64 } });
});

Deno.test("what is read-only is not written", () => {
  const sizes = { kind: 3, width: 1, aStride: 1, bStride: 0 };
  for (const segment of ["weights", "step"] as const) {
    const program = [instruction("elementwise", { a: at(0), out: at(0, segment) }, sizes, {})];
    refused([program], new RegExp(`out is written, but lies in ${segment}`), { bytes: { [segment]: 64 } });
  }
});

Deno.test("lanes and threads are counted", () => {
  const lanes = Array.from({ length: 9 }, () => [add(0, 0, 1)]);
  refused(lanes, /number of lanes is 9, expected 1 to 8/);
  refused([], /number of lanes is 0/);
  refused([[add(0, 0, 1)]], /number of threads is 0/, { threads: [0] });
  refused([[add(0, 0, 1)]], /number of threads is 1025/, { threads: [1025] });
  using eight = machine(lanes.slice(1));
  assert.deepEqual(eight.step(), DONE);
});

Deno.test("a closed engine refuses to run", () => {
  const m = machine([[add(0, 0, 1)]]);
  m[Symbol.dispose]();
  assert.throws(() => m.step(), /closed/);
});

Deno.test("the instruction set has a name", () => {
  assert.match(instructionSet(), /^(avx512vnni|avx512|avx2|neon|scalar)$/);
});

Deno.test("argmax is the first of the largest; losses are those of softmax", () => {
  assert.equal(argmax(Float32Array.of(1, 5, -2, 5)), 1);
  const logits = Float32Array.of(0, Math.log(3)), reference = Float32Array.of(0, 0);
  assert.deepEqual(tokenLoss(logits, 1).kl, 0);
  assert.ok(Math.abs(tokenLoss(logits, 1).nll - Math.log(4 / 3)) < 1e-6);
  const kl = 0.5 * Math.log(0.5 / 0.25) + 0.5 * Math.log(0.5 / 0.75);
  assert.ok(Math.abs(tokenLoss(logits, 1, reference).kl - kl) < 1e-6);
});
