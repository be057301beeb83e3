/**
 * The instruction table of the native engine: a plan for the cpu executor is a flat list of these, one record each.
 * This is the one description: `encode` writes records from it, and the build writes the C++ enumerations
 * (`cppHeader`, ffi/build/instructions.h) from it, so both sides always agree on the order of fields.
 *
 * A record is RECORD_BYTES: opcode, barrier (1: the lane's threads meet after it), when and after, then operands, integers
 * and reals in fixed-size arrays. An operand is (segment << 56 | byte offset) or NONE; segments are the memory
 * the engine was given (SEGMENTS), so no address appears in TypeScript. What each instruction computes stands at
 * the Args structure of the same name in simd/kernels.h.
 */

export const SEGMENTS = ["weights", "arena", "cache", "tables"] as const;
export type Segment = typeof SEGMENTS[number];

const MERGED = (name: string) => [name, `${name}Delta0`, `${name}Delta1`] as const;
const QUANTIZED = ["codes", "scales", "sums"] as const;
const QUANTIZED_SIZES = ["group", "groups", "codeStride"] as const;
const RESIDUAL = ["residualCodes", "outputScale", "channelScale", "norm"] as const;
const RESIDUAL_SIZES = ["residualWidth", "residualInputs", "residualOutputs", "rowBytes"] as const;
const FACTORS = ["a", "b", "aScale", "bScale"] as const;
const FACTOR_SIZES = ["aStride", "bStride", "inputs", "outputs", "rank", "bf16"] as const;
const SELECTION = ["index", "coefficient", "selectionScale", "selectionSum"] as const;

interface Fields {
  readonly operands: readonly string[];
  readonly integers: readonly string[];
  readonly reals: readonly string[];
}

export const INSTRUCTIONS = {
  // Between lanes: publish this step's sequence number at an event, or wait for it.
  signal: { operands: [], integers: ["event"], reals: [] },
  wait: { operands: [], integers: ["event"], reals: [] },
  embed: { operands: ["packed", "out"], integers: ["format", "group", "rows", "width"], reals: [] },
  norm: {
    operands: ["residual", ...MERGED("merged"), "weight", "sum", "out", ...QUANTIZED],
    integers: ["width", "stride", ...QUANTIZED_SIZES],
    reals: ["epsilon"],
  },
  quantize: { operands: ["x", ...QUANTIZED], integers: ["width", ...QUANTIZED_SIZES], reals: [] },
  siluMul: {
    operands: [...MERGED("gate"), ...MERGED("up"), "out", ...QUANTIZED],
    integers: ["width", "gateStride", "upStride", ...QUANTIZED_SIZES],
    reals: [],
  },
  elementwise: {
    operands: [...MERGED("a"), ...MERGED("b"), "out"],
    integers: ["kind", "width", "aStride", "bStride"],
    reals: [],
  },
  heads: {
    operands: [
      ...MERGED("q"),
      ...MERGED("k"),
      ...MERGED("v"),
      "qNorm",
      "kNorm",
      "cosines",
      "sines",
      "qOut",
      "cacheK",
      "cacheV",
    ],
    integers: ["heads", "kvHeads", "headDim", "qStride", "kStride", "vStride", "capacity"],
    reals: ["epsilon"],
  },
  attention: {
    operands: ["q", "cacheK", "cacheV", "out"],
    integers: ["heads", "kvHeads", "headDim", "capacity"],
    reals: ["scale"],
  },
  linear: {
    operands: ["packed", "x", ...QUANTIZED, "y", ...RESIDUAL],
    integers: ["format", "rows", "inputs", "yStride", "isOutput", ...QUANTIZED_SIZES, ...RESIDUAL_SIZES],
    reals: [],
  },
  sparseSelect: {
    operands: ["x", ...RESIDUAL, ...SELECTION],
    integers: ["channels", ...RESIDUAL_SIZES],
    reals: [],
  },
  sparseSum: {
    operands: [...RESIDUAL, ...SELECTION, "delta"],
    integers: ["channels", "deltaStride", ...RESIDUAL_SIZES],
    reals: [],
  },
  lowRankDown: {
    operands: ["x", ...FACTORS, "hidden"],
    integers: ["hiddenStride", ...FACTOR_SIZES],
    reals: [],
  },
  lowRankUp: {
    operands: ["hidden", ...FACTORS, "delta"],
    integers: ["hiddenStride", "deltaStride", ...FACTOR_SIZES],
    reals: [],
  },
} as const satisfies Record<string, Fields>;

export type Opcode = keyof typeof INSTRUCTIONS;
type Spec<P extends Opcode> = typeof INSTRUCTIONS[P];
export type OperandName<P extends Opcode> = Spec<P>["operands"][number];
export type IntegerName<P extends Opcode> = Spec<P>["integers"][number];
export type RealName<P extends Opcode> = Spec<P>["reals"][number];

/** Where an operand lies: bytes from the start of a segment. */
export interface Operand {
  readonly segment: Segment;
  readonly offset: number;
}

/**
 * One instruction by names. Operands left out are null pointers; integers and reals must all be given. `Place` is what
 * an operand is: a place in memory, or whatever a lowering uses before it has assigned memory.
 */
export interface InstructionOf<P extends Opcode, Place = Operand> {
  readonly op: P;
  /** The threads of the lane wait for each other after it. */
  readonly barrier: boolean;
  readonly operands: { readonly [K in OperandName<P>]?: Place | undefined };
  readonly integers: { readonly [K in IntegerName<P>]: number };
  readonly reals: { readonly [K in RealName<P>]: number };
  /**
   * How many instructions back the one lies whose whole work must be done before this one starts, where no barrier
   * lies between them (0: none). An instruction that has one continues work begun without a barrier: its own barrier ends
   * that work, so it is met even in steps that skip the instruction.
   */
  readonly after: number;
  /** When it runs: in every step, or only in prompt (`prefill`) or only in token (`decode`) steps. */
  readonly when: "always" | "prefill" | "decode";
}
export type InstructionWith<Place> = { [P in Opcode]: InstructionOf<P, Place> }[Opcode];
export type Instruction = InstructionWith<Operand>;

export const MOST_OPERANDS = 16;
export const MOST_INTEGERS = 12;
export const MOST_REALS = 2;
/** opcode, barrier, when, after; operands u64; integers i32; reals f32. */
export const RECORD_BYTES = 16 + 8 * MOST_OPERANDS + 4 * MOST_INTEGERS + 4 * MOST_REALS;
const NONE = 0xffff_ffff_ffff_ffffn;
const WHEN = ["always", "prefill", "decode"] as const;
const OPCODES = Object.keys(INSTRUCTIONS) as Opcode[];

/** Packs a program into records, little-endian. Throws RangeError for an offset that is not a safe integer. */
export function encode(program: readonly Instruction[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(program.length * RECORD_BYTES);
  const view = new DataView(bytes.buffer);
  program.forEach((instruction, n) => {
    const fields: Fields = INSTRUCTIONS[instruction.op];
    const operands: Readonly<Record<string, Operand | undefined>> = instruction.operands;
    const integers: Readonly<Record<string, number>> = instruction.integers;
    const reals: Readonly<Record<string, number>> = instruction.reals;
    let at = n * RECORD_BYTES;
    view.setInt32(at, OPCODES.indexOf(instruction.op), true);
    view.setInt32(at + 4, instruction.barrier ? 1 : 0, true);
    view.setInt32(at + 8, WHEN.indexOf(instruction.when), true);
    view.setInt32(at + 12, instruction.after, true);
    at += 16;
    for (let i = 0; i < MOST_OPERANDS; i++) view.setBigUint64(at + 8 * i, NONE, true);
    fields.operands.forEach((name, i) => {
      const operand = operands[name];
      if (operand) view.setBigUint64(at + 8 * i, address(operand), true);
    });
    at += 8 * MOST_OPERANDS;
    fields.integers.forEach((name, i) => view.setInt32(at + 4 * i, integers[name] ?? 0, true));
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

/** The C++ side of this table: `hc::instruction::norm::epsilon` is an index, `hc::Opcode::norm` an opcode. */
export function cppHeader(): string {
  const list = (names: readonly string[], suffix: string) =>
    names.length === 0 ? "" : `enum ${suffix} : int { ${names.map((n) => `${n}_`).join(", ")} };`;
  const lines = [
    "// Written by the build from ffi/instructions.ts. Do not edit.",
    "#pragma once",
    "#include <cstdint>",
    "namespace hc {",
    `constexpr int MOST_OPERANDS = ${MOST_OPERANDS}, MOST_INTEGERS = ${MOST_INTEGERS}, MOST_REALS = ${MOST_REALS};`,
    `constexpr int SEGMENTS = ${SEGMENTS.length};`,
    "struct Record { int32_t opcode, barrier, when, after; uint64_t operand[MOST_OPERANDS];",
    "  int32_t integer[MOST_INTEGERS]; float real[MOST_REALS]; };",
    `static_assert(sizeof(Record) == ${RECORD_BYTES});`,
    `enum class Opcode : int32_t { ${OPCODES.join(", ")} };`,
    ...OPCODES.map((op) => {
      const fields: Fields = INSTRUCTIONS[op];
      return `namespace instruction::${op} { ${list(fields.operands, "Operands")} ${
        list(fields.integers, "Integers")
      } ${list(fields.reals, "Reals")} }`;
    }),
    "}  // namespace hc",
    "",
  ];
  return lines.join("\n");
}
