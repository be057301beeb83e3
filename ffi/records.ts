/**
 * Records of the native engine: instructions by names (instructions.ts) become bytes of one size each, in the order of fields
 * that the build writes into the C++ side (cpp_header.ts).
 */
import {
  type Fields,
  type Instruction,
  INSTRUCTIONS,
  OPCODES,
  type Operand,
  SEGMENTS,
} from "./instructions.ts";

export const MOST_OPERANDS = 20;
export const MOST_INTEGERS = 12;
export const MOST_REALS = 2;
const HEADER_BYTES = 24;
/** opcode, over, when, barrier, awaits, 0; operands u64; integers i32; reals f32. */
export const RECORD_BYTES = HEADER_BYTES + 8 * MOST_OPERANDS + 4 * MOST_INTEGERS + 4 * MOST_REALS;
const NONE = 0xffff_ffff_ffff_ffffn;
const OVER = ["tokens", "rows"] as const;
const WHEN = ["always", "decode"] as const;

/** Packs a program into records, little-endian. Throws RangeError for a number that its field cannot hold. */
export function encode(program: readonly Instruction[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(program.length * RECORD_BYTES);
  const view = new DataView(bytes.buffer);
  const put = (at: number, value: number, what: string) => {
    if ((value | 0) !== value) throw new RangeError(`${what} is ${value}: no 32-bit integer`);
    view.setInt32(at, value, true);
  };
  program.forEach((instruction, n) => {
    const fields: Fields = INSTRUCTIONS[instruction.op];
    const operands: Readonly<Record<string, Operand | undefined>> = instruction.operands;
    const integers: Readonly<Record<string, number>> = instruction.integers;
    const reals: Readonly<Record<string, number>> = instruction.reals;
    let at = n * RECORD_BYTES;
    const { op, over, when, barrier, awaits } = instruction;
    [OPCODES.indexOf(op), OVER.indexOf(over), WHEN.indexOf(when), barrier ? 1 : 0, awaits].forEach((
      value,
      i,
    ) => put(at + 4 * i, value, "a header field"));
    at += HEADER_BYTES;
    for (let i = 0; i < MOST_OPERANDS; i++) view.setBigUint64(at + 8 * i, NONE, true);
    Object.keys(fields.operands).forEach((name, i) => {
      const operand = operands[name];
      if (operand) view.setBigUint64(at + 8 * i, address(operand), true);
    });
    at += 8 * MOST_OPERANDS;
    Object.keys(fields.integers).forEach((name, i) => put(at + 4 * i, integers[name] ?? 0, `${op}.${name}`));
    at += 4 * MOST_INTEGERS;
    fields.reals.forEach((name, i) => view.setFloat32(at + 4 * i, reals[name] ?? 0, true));
  });
  return bytes;
}

function address({ segment, offset }: Operand): bigint {
  if (!Number.isSafeInteger(offset) || offset < 0) {
    throw new RangeError(`offset ${offset} in segment ${segment}`);
  }
  return BigInt(SEGMENTS.indexOf(segment)) << 56n | BigInt(offset);
}
