import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../compiler/errors.ts";
import { at, instruction, machine, TOKENS } from "../tests/fixtures/engine.ts";
import { cppHeader } from "./cpp_header.ts";
import {
  type Instruction,
  type InstructionOf,
  INSTRUCTIONS,
  type Opcode,
  type Operand,
  type Segment,
  SEGMENTS,
} from "./instructions.ts";
import { encode, MOST_INTEGERS, MOST_OPERANDS, MOST_REALS, RECORD_BYTES } from "./records.ts";

const OPCODES = Object.keys(INSTRUCTIONS) as Opcode[];
const OVER = ["tokens", "rows"] as const;
const WHEN = ["always", "decode"] as const;
const OPERANDS_AT = 24;

/** A record by names again, read as the C++ side reads it (`Record` of cppHeader). */
function decode(bytes: Uint8Array): unknown[] {
  return Array.from({ length: bytes.length / RECORD_BYTES }, (_, n) => {
    const view = new DataView(bytes.buffer, n * RECORD_BYTES, RECORD_BYTES);
    const header = (i: number) => view.getInt32(4 * i, true);
    const op = OPCODES[header(0)]!;
    const { operands, integers, reals } = INSTRUCTIONS[op];
    const integersAt = OPERANDS_AT + 8 * MOST_OPERANDS, realsAt = integersAt + 4 * MOST_INTEGERS;
    return {
      op,
      over: OVER[header(1)]!,
      when: WHEN[header(2)]!,
      barrier: header(3) === 1,
      awaits: header(4),
      operands: Object.fromEntries(
        Object.keys(operands).flatMap((name, i) => {
          const word = view.getBigUint64(OPERANDS_AT + 8 * i, true);
          if (word === 0xffff_ffff_ffff_ffffn) return [];
          const offset = Number(word & 0xff_ffff_ffff_ffffn);
          return [[name, { segment: SEGMENTS[Number(word >> 56n)]!, offset }]];
        }),
      ),
      integers: Object.fromEntries(
        Object.keys(integers).map((name, i) => [name, view.getInt32(integersAt + 4 * i, true)]),
      ),
      reals: Object.fromEntries(reals.map((name, i) => [name, view.getFloat32(realsAt + 4 * i, true)])),
    };
  });
}

const operand = fc.record({
  segment: fc.constantFrom(...SEGMENTS),
  offset: fc.maxSafeNat(),
}, { noNullPrototype: true });

/** An instruction of any operands and numbers, whether they make sense or not. */
const anyInstruction = fc.constantFrom(...OPCODES).chain((op) => {
  const fields = INSTRUCTIONS[op];
  const each = <T>(names: readonly string[], value: fc.Arbitrary<T>, requiredKeys?: []) =>
    fc.record(
      Object.fromEntries(names.map((name) => [name, value])),
      requiredKeys ? { requiredKeys, noNullPrototype: true } : { noNullPrototype: true },
    );
  return fc.record({
    op: fc.constant(op),
    over: fc.constantFrom(...OVER),
    when: fc.constantFrom(...WHEN),
    barrier: fc.boolean(),
    awaits: fc.nat(100),
    operands: each(Object.keys(fields.operands), operand, []),
    integers: each(Object.keys(fields.integers), fc.integer()),
    reals: each(fields.reals, fc.float({ noNaN: true })),
  }, { noNullPrototype: true });
});

Deno.test("records say what the instructions say", () => {
  fc.assert(fc.property(fc.array(anyInstruction, { maxLength: 5 }), (program) => {
    const bytes = encode(program as Instruction[]);
    assert.equal(bytes.length, program.length * RECORD_BYTES);
    assert.deepEqual(decode(bytes), program);
  }));
});

Deno.test("every instruction fits a record, and names its fields once", () => {
  for (const [op, { operands, integers, reals }] of Object.entries(INSTRUCTIONS)) {
    const names = [...Object.keys(operands), ...Object.keys(integers), ...reals];
    assert.equal(new Set(names).size, names.length, op);
    const counts = [Object.keys(operands).length, Object.keys(integers).length, reals.length];
    [MOST_OPERANDS, MOST_INTEGERS, MOST_REALS].forEach((most, i) => assert.ok(counts[i]! <= most, op));
  }
});

Deno.test("numbers that their field cannot hold are refused", () => {
  const sizes = { width: 1, xStride: 1, group: 32, groups: 1, codeStride: 128 };
  for (const offset of [-1, 0.5, 2 ** 53, NaN]) {
    assert.throws(() => encode([instruction("quantize", { x: at(offset) }, sizes, {})]), RangeError);
  }
  for (const width of [0.5, 2 ** 31, NaN]) {
    assert.throws(() => encode([instruction("quantize", {}, { ...sizes, width }, {})]), RangeError);
  }
});

Deno.test("the C++ side has every opcode and field, in this order", () => {
  const header = cppHeader();
  assert.match(header, new RegExp(`enum class Opcode : int32_t \\{ ${OPCODES.join(", ")} \\}`));
  assert.match(header, /namespace instruction::linear \{ enum Operands : int \{ packed_, x_, codes_,/);
});

const QUANTIZED = { group: 64, groups: 1, codeStride: 64 };
const RESIDUAL = { residualWidth: 4, residualInputs: 40, residualOutputs: 70, rowBytes: 64 };
const PAGES = { pageCount: 3, mostSequences: 2, mostPages: 2, context: 100 };
const FACTORS = { aStride: 64, bStride: 80, inputs: 40, outputs: 70, rank: 5, bf16: 1 };

type Example<P extends Opcode> = Pick<InstructionOf<P>, "integers" | "reals">;
/** Sizes of every instruction that make all of its operands have bytes, but for x beside codes. */
const EXAMPLES: { readonly [P in Exclude<Opcode, "signal" | "wait">]: Example<P> } = {
  embedding: { integers: { format: 3, group: 64, rows: 20, width: 100 }, reals: {} },
  norm: {
    integers: { width: 40, heads: 1, aStride: 50, bStride: 60, ...QUANTIZED },
    reals: { epsilon: 1e-5 },
  },
  quantize: { integers: { width: 40, xStride: 50, ...QUANTIZED }, reals: {} },
  siluMul: { integers: { width: 40, gateStride: 50, upStride: 60, ...QUANTIZED }, reals: {} },
  elementwise: { integers: { kind: 1, width: 40, aStride: 50, bStride: 60 }, reals: {} },
  rope: { integers: { heads: 3, headDim: 12, xStride: 50, context: 100 }, reals: {} },
  append: {
    integers: {
      heads: 4,
      kvHeads: 2,
      headDim: 12,
      qStride: 50,
      kStride: 30,
      vStride: 40,
      ...PAGES,
      layer: 1,
    },
    reals: { qEpsilon: 1e-5, kEpsilon: 1e-5 },
  },
  attend: { integers: { heads: 4, kvHeads: 2, headDim: 12, ...PAGES }, reals: { scale: 1 } },
  linear: {
    integers: { format: 6, rows: 70, inputs: 40, xStride: 0, yStride: 75, ...QUANTIZED, ...RESIDUAL },
    reals: {},
  },
  sparseSelect: { integers: { xStride: 50, channels: 7, ...RESIDUAL }, reals: { threshold: 0.25 } },
  sparseSum: { integers: { channels: 7, deltaStride: 75, ...RESIDUAL }, reals: {} },
  lowRankDown: { integers: { xStride: 50, hiddenStride: 16, ...FACTORS }, reals: {} },
  lowRankUp: { integers: { hiddenStride: 16, deltaStride: 75, ...FACTORS }, reals: {} },
  observe: { integers: { width: 40, xStride: 50, products: 1 }, reals: {} },
};
type Computing = keyof typeof EXAMPLES;
const COMPUTING = Object.keys(EXAMPLES) as Computing[];

/** An instruction of the example's sizes, with all operands at the arena's start but for `changed`. */
function example(
  op: Computing,
  changed: Partial<Record<string, Operand | null>> = {},
  integers = {},
): Instruction {
  const operands = Object.keys(INSTRUCTIONS[op].operands).flatMap((name) => {
    const place = name in changed ? changed[name] : at(0);
    return place ? [[name, place]] : [];
  });
  const { integers: sizes, reals } = EXAMPLES[op];
  const all = { ...instruction("signal", {}, {}, {}), op, operands: Object.fromEntries(operands), reals };
  return { ...all, integers: { ...sizes, ...integers } } as Instruction;
}

/** Why the engine refuses a program, "" where it does not. */
function refusal(program: Instruction, bytes: Partial<Record<Segment, number>> = {}): string {
  try {
    machine([[program]], { bytes: { arena: 2 ** 20, ...bytes } })[Symbol.dispose]();
    return "";
  } catch (error) {
    assert.ok(error instanceof HcinferError && error.kind === "bundle", String(error));
    return error.message;
  }
}

Deno.test("examples of every instruction are taken", () => {
  for (const op of COMPUTING) assert.equal(refusal(example(op)), "", op);
});

Deno.test("an operand that covers a byte too little is refused, by name and with both sizes", () => {
  let operands = 0;
  for (const op of COMPUTING) {
    for (const name of Object.keys(INSTRUCTIONS[op].operands)) {
      const program = (offset: number) => example(op, { [name]: at(offset, "observations") });
      const pattern = new RegExp(
        `lane 0, instruction 0 \\(${op}\\): ${name} has (\\d+) bytes from 64, outside its memory: observations has`,
      );
      const message = refusal(program(64), { observations: 64 });
      if (op === "linear" && name === "x") { // beside codes it is not read
        assert.equal(message, "");
        continue;
      }
      const bytes = Number(pattern.exec(message)?.[1]);
      assert.ok(bytes > 0, message);
      assert.equal(refusal(program(64), { observations: 64 + bytes }), "");
      assert.match(refusal(program(64), { observations: 63 + bytes }), pattern);
      assert.match(refusal(program(66), { observations: 4096 + bytes }), /66, which is no multiple of [48]/);
      assert.match(refusal(program(2 ** 52), { observations: 4096 }), /outside its memory/);
      operands++;
    }
  }
  assert.ok(operands > 90, `${operands}`);
});

Deno.test("extents are those of the layouts", () => {
  const bytes = (op: Computing, name: string, integers = {}) => {
    const message = refusal(example(op, { [name]: at(0, "observations") }, integers));
    return Number(/ has (\d+) bytes from/.exec(message)?.[1]);
  };
  assert.equal(bytes("embedding", "packed"), 2 * 2 * (64 + 16 * 64 * 3 / 8));
  assert.equal(bytes("embedding", "packed", { format: 0, group: 0, width: 101 }), 2 * 51 * 64);
  assert.equal(bytes("embedding", "packed", { format: 6 }), 2 * (64 + 2 * (64 + 16 * 64 * 3 / 8)));
  assert.equal(bytes("norm", "sums16"), TOKENS * 8);
  assert.equal(bytes("linear", "sums16"), TOKENS * 8);
  assert.equal(refusal(example("linear", { sums16: null }, { format: 3 })), ""); // scales of whole groups need none
  assert.equal(bytes("norm", "b"), 4 * ((TOKENS - 1) * 60 + 40));
  assert.equal(bytes("norm", "codes"), TOKENS * 64);
  assert.equal(bytes("append", "cacheK"), 2 * 3 * 2 * 12 * 64);
  assert.equal(bytes("append", "cosines"), 4 * 100 * 6);
  assert.equal(bytes("attend", "tiles"), 8 * TOKENS);
  assert.equal(bytes("linear", "residualCodes"), 40 * 64);
  assert.equal(bytes("lowRankDown", "a"), 2 * 5 * 64);
  assert.equal(bytes("lowRankDown", "a", { bf16: 0 }), 5 * 64);
  assert.equal(bytes("observe", "sums"), 8 * 40 * 40);
});

Deno.test("an operand that is missing is refused, unless it may be", () => {
  for (const op of COMPUTING) {
    for (const [name, rule] of Object.entries(INSTRUCTIONS[op].operands)) {
      const message = refusal(example(op, { [name]: null }));
      if (op === "linear" && name === "x") assert.equal(message, "");
      else if (!("optional" in rule)) assert.match(message, new RegExp(`: ${name} is missing`));
      else if (op === "append" && /sines/.test(name)) assert.match(message, /one of cosines and sines/);
      else assert.equal(message, "", `${op}.${name}`);
    }
  }
});

Deno.test("integers out of their range are refused, by name", () => {
  for (const op of COMPUTING) {
    for (const [name, [least, most]] of Object.entries(INSTRUCTIONS[op].integers)) {
      for (const value of [least - 1, most + 1, -(2 ** 31), 2 ** 31 - 1]) {
        const message = refusal(example(op, {}, { [name]: value }));
        assert.match(message, new RegExp(`\\(${op}\\): ${name} is ${value}, expected ${least} to ${most}`));
      }
    }
  }
});

Deno.test("integers that do not fit each other are refused", () => {
  const cases: readonly (readonly [Computing, Record<string, number>])[] = [
    ["embedding", { group: 48 }],
    ["embedding", { group: 0 }],
    ["embedding", { format: 0 }],
    ["embedding", { format: 6, group: 32 }],
    ["norm", { groups: 0 }],
    ["norm", { groups: 2, codeStride: 128 }],
    ["norm", { codeStride: 63 }],
    ["norm", { heads: 2 }],
    ["rope", { headDim: 11 }],
    ["append", { context: 129 }],
    ["attend", { heads: 3 }],
    ["linear", { group: 32, groups: 2 }],
    ["linear", { yStride: 69 }],
    ["linear", { residualWidth: 7 }],
    ["linear", { residualInputs: 39 }],
    ["linear", { residualOutputs: 80 }],
    ["linear", { rowBytes: 32 }],
    ["sparseSelect", { channels: 41 }],
    ["sparseSum", { rowBytes: 65 }],
    ["sparseSum", { deltaStride: 69 }],
    ["lowRankDown", { aStride: 40 }],
    ["lowRankDown", { aStride: 32 }],
    ["lowRankDown", { hiddenStride: 4 }],
    ["lowRankUp", { bStride: 64 }],
    ["lowRankUp", { deltaStride: 69 }],
  ];
  for (const [op, integers] of cases) {
    assert.match(
      refusal(example(op, {}, integers)),
      /its integers break/,
      `${op} ${JSON.stringify(integers)}`,
    );
  }
  // So large that their product is more than 64 bits hold.
  const huge = { heads: 2 ** 20, kvHeads: 2 ** 20, headDim: 2 ** 20, pageCount: 2 ** 26 };
  assert.match(refusal(example("attend", {}, huge)), /has \d+ bytes from 0, outside its memory/);
});

Deno.test("reals that are no numbers are refused", () => {
  for (const value of [NaN, Infinity, -Infinity]) {
    const program = { ...example("attend"), reals: { scale: value } } as Instruction;
    assert.match(refusal(program), /a real is -?(nan|inf)/);
  }
});
