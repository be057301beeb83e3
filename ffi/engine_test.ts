import assert from "node:assert/strict";
import { availableParallelism } from "node:os";
import { HcinferError } from "../compiler/errors.ts";
import { argmax, Engine, instructionSet, tokenLoss } from "./engine.ts";
import type { Instruction, InstructionOf, Operand, Segment } from "./instructions.ts";
import { allocate, type NativeBuffer } from "./mapping.ts";

const at = (offset: number, segment: Segment = "arena"): Operand => ({ segment, offset });

function instruction<P extends Instruction["op"]>(
  op: P,
  operands: InstructionOf<P>["operands"],
  integers: InstructionOf<P>["integers"],
  reals: InstructionOf<P>["reals"],
  more: Partial<Pick<Instruction, "barrier" | "after" | "when">> = {},
): Instruction {
  return {
    op,
    barrier: true,
    after: 0,
    when: "always",
    operands,
    integers,
    reals,
    ...more,
  } as unknown as Instruction;
}

const WIDTH = 24;
const TOKENS = 3;

/** out = a + b, of WIDTH elements a token. */
function add(a: number, b: number, out: number, more: Parameters<typeof instruction>[4] = {}): Instruction {
  const sizes = { kind: 0, width: WIDTH, aStride: WIDTH, bStride: WIDTH };
  return instruction("elementwise", { a: at(a), b: at(b), out: at(out) }, sizes, {}, more);
}

interface Machine extends Disposable {
  readonly engine: Engine;
  readonly arena: NativeBuffer;
}

function machine(
  backbone: readonly Instruction[],
  options: { compensation?: readonly Instruction[]; threads?: number; arenaBytes?: number } = {},
): Machine {
  const { compensation = [], threads = 1, arenaBytes = 4096 } = options;
  const arena = allocate(arenaBytes);
  const memory = { weights: allocate(64), arena, cache: allocate(64), tables: allocate(64) };
  try {
    const engine = new Engine({
      backbone,
      compensation,
      memory,
      events: 2,
      backboneThreads: threads,
      compensationThreads: compensation.length > 0 ? 1 : 0,
    });
    return {
      engine,
      arena,
      [Symbol.dispose]: () => {
        engine[Symbol.dispose]();
        memory.weights.close();
      },
    };
  } catch (error) {
    for (const segment of Object.values(memory)) segment.close();
    throw error;
  }
}

const floats = (arena: NativeBuffer, offset: number) =>
  new Float32Array(arena.bytes.buffer, arena.bytes.byteOffset + offset, WIDTH * TOKENS);

function step(engine: Engine, mode: "prefill" | "decode" = "decode"): void {
  engine.step(new Int32Array(TOKENS), 0, mode, "all");
}

Deno.test("a program runs in order, each instruction after what it reads", () => {
  for (const threads of [1, 2, 4]) {
    // Each adds 1 to what the one before made: a chain that any overtaking breaks.
    const [ones, start] = [0, 512];
    const length = 60;
    const program = Array.from({ length }, (_, n) => add(start + 512 * n, ones, start + 512 * (n + 1)));
    using m = machine(program, { threads, arenaBytes: 512 * (length + 2) });
    floats(m.arena, ones).fill(1);
    for (let round = 0; round < 40; round++) {
      floats(m.arena, start).fill(round);
      step(m.engine);
      assert.ok(floats(m.arena, start + 512 * length).every((v) => v === round + length));
    }
  }
});

Deno.test("lanes meet at events", () => {
  const signal = (event: number) => instruction("signal", {}, { event }, {}, { barrier: false });
  const wait = (event: number) => instruction("wait", {}, { event }, {}, { barrier: false });
  // a = x + x; the other lane makes b = a + x; c = b + b needs both events.
  const backbone = [add(0, 0, 512), signal(0), wait(1), add(1024, 1024, 1536)];
  const compensation = [wait(0), add(512, 0, 1024), signal(1)];
  for (const threads of [1, 2, availableParallelism() + 1]) {
    using m = machine(backbone, { compensation, threads });
    for (let round = 0; round < 200; round++) {
      floats(m.arena, 0).fill(round);
      step(m.engine);
      assert.ok(floats(m.arena, 1536).every((v) => v === 6 * round), `round ${round}`);
    }
  }
});

Deno.test("instructions of the other kind of step are left out", () => {
  const program = [add(0, 0, 512, { when: "prefill" }), add(0, 512, 1024, { when: "decode" })];
  using m = machine(program, { threads: 2 });
  floats(m.arena, 0).fill(1);
  step(m.engine, "prefill");
  assert.ok(floats(m.arena, 512).every((v) => v === 2) && floats(m.arena, 1024).every((v) => v === 0));
  step(m.engine, "decode");
  assert.ok(floats(m.arena, 1024).every((v) => v === 3));
});

Deno.test("an instruction waits for the one it comes after, without a barrier", () => {
  // b = a + a beside unrelated work; c = b + a waits for b alone.
  const unrelated = add(2048, 2048, 2560, { barrier: false });
  const program = [
    add(0, 0, 512, { barrier: false }),
    unrelated,
    add(512, 0, 1024, { after: 2 }),
    add(1024, 0, 1536),
  ];
  for (const threads of [1, 2, 4]) {
    using m = machine(program, { threads });
    for (let round = 0; round < 100; round++) {
      floats(m.arena, 0).fill(round);
      step(m.engine);
      assert.ok(floats(m.arena, 1536).every((v) => v === 4 * round), `${threads} threads, round ${round}`);
    }
  }
});

Deno.test("the barrier of what continues earlier work is met in steps that skip it", () => {
  const program = [
    add(0, 0, 512, { barrier: false }),
    add(0, 0, 1024, { after: 1, when: "decode" }),
    add(512, 0, 1536),
  ];
  using m = machine(program, { threads: 3 });
  for (let round = 0; round < 100; round++) {
    floats(m.arena, 0).fill(round);
    step(m.engine, "prefill");
    assert.ok(floats(m.arena, 1536).every((v) => v === 3 * round), `round ${round}`);
  }
});

Deno.test("the trace has a time for every instruction", () => {
  using m = machine([add(0, 0, 512), add(512, 0, 1024)]);
  assert.deepEqual([...m.engine.trace()], [0, 0]);
  step(m.engine);
  assert.ok(m.engine.trace().every((time) => time >= 0));
});

function refused(program: readonly Instruction[], pattern: RegExp): void {
  assert.throws(() => machine(program), (error) => {
    assert.ok(error instanceof HcinferError && error.kind === "bundle", String(error));
    assert.match(error.message, pattern);
    return true;
  });
}

Deno.test("an operand outside its memory is refused", () => {
  using _ = machine([add(0, 0, 4096 - 4 * WIDTH * TOKENS)]);
  refused([add(0, 0, 0), add(0, 0, 4096)], /instruction 1 .* operand outside its memory/);
  refused([add(2 ** 50, 0, 0)], /instruction 0/);
  const sizes = { kind: 0, width: WIDTH, aStride: WIDTH, bStride: WIDTH };
  refused([instruction("elementwise", { a: at(64, "tables"), b: at(0), out: at(0) }, sizes, {})], /operand/);
});

Deno.test("waiting for an instruction before the first is refused", () => {
  refused([add(0, 0, 512), add(0, 0, 512, { after: 2 })], /instruction 1/);
  refused([add(0, 0, 512, { after: -1 })], /instruction 0/);
});

Deno.test("sizes that no kernel takes are refused", () => {
  const quantized = { codes: at(0), scales: at(0), sums: at(0) };
  const sizes = { rows: 16, inputs: 32, yStride: 16, isOutput: 0, group: 32, groups: 1, codeStride: 128 };
  const residual = { residualWidth: 0, residualInputs: 0, residualOutputs: 0, rowBytes: 0 };
  const linear = (format: number) =>
    instruction("linear", { packed: at(0, "weights"), ...quantized, y: at(0) }, {
      format,
      ...sizes,
      ...residual,
    }, {});
  refused([linear(9)], /sizes no kernel takes/);
  refused([linear(-1)], /sizes no kernel takes/);
});

Deno.test("a closed engine refuses to run", () => {
  const m = machine([add(0, 0, 512)]);
  m[Symbol.dispose]();
  assert.throws(() => step(m.engine), /closed/);
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
