import assert from "node:assert/strict";
import fc from "fast-check";
import {
  cppHeader,
  encode,
  type Instruction,
  INSTRUCTIONS,
  MOST_INTEGERS,
  MOST_OPERANDS,
  MOST_REALS,
  type Opcode,
  RECORD_BYTES,
  SEGMENTS,
} from "./instructions.ts";

const OPCODES = Object.keys(INSTRUCTIONS) as Opcode[];
const WHEN = ["always", "prefill", "decode"] as const;

interface Decoded {
  readonly op: string;
  readonly barrier: boolean;
  readonly after: number;
  readonly when: string;
  readonly operands: Readonly<Record<string, { segment: string; offset: number }>>;
  readonly integers: Readonly<Record<string, number>>;
  readonly reals: Readonly<Record<string, number>>;
}

/** A record by names again, read as the C++ side reads it (`Record` of cppHeader). */
function decode(bytes: Uint8Array): Decoded[] {
  return Array.from({ length: bytes.length / RECORD_BYTES }, (_, n) => {
    const view = new DataView(bytes.buffer, n * RECORD_BYTES, RECORD_BYTES);
    const op = OPCODES[view.getInt32(0, true)]!;
    const { operands, integers, reals } = INSTRUCTIONS[op];
    const integersAt = 16 + 8 * MOST_OPERANDS, realsAt = integersAt + 4 * MOST_INTEGERS;
    return {
      op,
      barrier: view.getInt32(4, true) === 1,
      when: WHEN[view.getInt32(8, true)]!,
      after: view.getInt32(12, true),
      operands: Object.fromEntries(
        operands.flatMap((name, i) => {
          const word = view.getBigUint64(16 + 8 * i, true);
          if (word === 0xffff_ffff_ffff_ffffn) return [];
          const offset = Number(word & 0xff_ffff_ffff_ffffn);
          return [[name, { segment: SEGMENTS[Number(word >> 56n)]!, offset }]];
        }),
      ),
      integers: Object.fromEntries(
        integers.map((name, i) => [name, view.getInt32(integersAt + 4 * i, true)]),
      ),
      reals: Object.fromEntries(reals.map((name, i) => [name, view.getFloat32(realsAt + 4 * i, true)])),
    };
  });
}

const operand = fc.record({
  segment: fc.constantFrom(...SEGMENTS),
  offset: fc.maxSafeNat(),
}, { noNullPrototype: true });

const instruction: fc.Arbitrary<Instruction> = fc.constantFrom(...OPCODES).chain((op) => {
  const fields = INSTRUCTIONS[op];
  const each = <T>(names: readonly string[], value: fc.Arbitrary<T>, requiredKeys?: []) =>
    fc.record(
      Object.fromEntries(names.map((name) => [name, value])),
      requiredKeys ? { requiredKeys, noNullPrototype: true } : { noNullPrototype: true },
    );
  return fc.record({
    op: fc.constant(op),
    barrier: fc.boolean(),
    when: fc.constantFrom(...WHEN),
    after: fc.nat(100),
    operands: each(fields.operands, operand, []),
    integers: each(fields.integers, fc.integer()),
    reals: each(fields.reals, fc.float({ noNaN: true })),
  }, { noNullPrototype: true }) as unknown as fc.Arbitrary<Instruction>;
});

Deno.test("records say what the instructions say", () => {
  fc.assert(fc.property(fc.array(instruction, { maxLength: 5 }), (program) => {
    const bytes = encode(program);
    assert.equal(bytes.length, program.length * RECORD_BYTES);
    assert.deepEqual(decode(bytes), program);
  }));
});

Deno.test("every instruction fits a record, and names its fields once", () => {
  for (const [op, { operands, integers, reals }] of Object.entries(INSTRUCTIONS)) {
    assert.ok(operands.length <= MOST_OPERANDS && integers.length <= MOST_INTEGERS, op);
    assert.ok(reals.length <= MOST_REALS, op);
    const names: readonly string[] = [...operands, ...integers, ...reals];
    assert.equal(new Set(names).size, names.length, op);
  }
});

Deno.test("offsets that are no byte numbers are refused", () => {
  for (const offset of [-1, 0.5, 2 ** 53, NaN]) {
    const program = [{
      op: "quantize",
      barrier: true,
      when: "always",
      after: 0,
      operands: { x: { segment: "arena", offset } },
      integers: { width: 1, group: 32, groups: 1, codeStride: 128 },
      reals: {},
    }] as const;
    assert.throws(() => encode(program), RangeError);
  }
});

Deno.test("the C++ side has every opcode and field, in this order", () => {
  const header = cppHeader();
  assert.match(header, new RegExp(`enum class Opcode : int32_t \\{ ${OPCODES.join(", ")} \\}`));
  assert.match(header, /namespace instruction::linear \{ enum Operands : int \{ packed_, x_, codes_,/);
});
