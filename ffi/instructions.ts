/**
 * The instruction table of the native engine: a program is a flat list of these, one record each. This is the one
 * description: records.ts writes records from it, and the build writes the C++ side (cpp_header.ts): the order of fields,
 * and for every instruction the ranges of its integers and how many bytes each operand must cover, which are
 * checked where a program is bound (simd/program.cpp). What an instruction computes stands at the Args structure of the
 * same name in simd/kernels.h.
 *
 * An operand is (segment << 56 | byte offset) or NONE. Segments are the memory the engine was given, so no address
 * appears in TypeScript.
 */
import { EVENT_BYTES, MAILBOX_EVENTS, PAGE_POSITIONS } from "../compiler/memory.ts";
import { FORMAT_KINDS, SUBGROUPED } from "../compiler/weights/format.ts";

/**
 * weights: the bundle's file, read-only. arena: activations. cache: pages of keys and values. tables: cosines and sines.
 * step: tokens, positions, rows and page tables of the step at hand. mailbox: what lanes and devices tell each other.
 * logits: the output. observations: sums over inputs, for calibration. For programs of a GPU, beside them: twin, the arena of
 * the CPU, laid out as its own (what corrections made is read there); staging, what is streamed in for one window at a time.
 */
export const SEGMENTS = [
  "weights",
  "arena",
  "cache",
  "tables",
  "step",
  "mailbox",
  "logits",
  "observations",
  "twin",
  "staging",
] as const;
export type Segment = typeof SEGMENTS[number];

export { EVENT_BYTES, MAILBOX_EVENTS, PAGE_POSITIONS };
/** Most tokens of one sequence that share a pass of attention over its keys and values. */
export const ATTENTION_TILE = 8;
/** Offsets of operands are multiples of this. No vector load of a kernel needs more; a scalar of 8 bytes does (`words`). */
export const OPERAND_ALIGNMENT = 4;

/**
 * What an operand must cover, in bytes: an expression over the instruction's integers and `n`, the most tokens (or rows
 * of logits) of a step. 0: may be absent. It is C++ over saturating integers; `packed_bytes` and the like are in
 * simd/extents.h.
 */
export interface Rule {
  readonly bytes: string;
  readonly access: "read" | "write";
  /** May be absent whatever its extent. */
  readonly optional?: true;
  /** What its offset is a multiple of; OPERAND_ALIGNMENT where nothing is said. */
  readonly alignment?: 8;
}

const read = (bytes: string): Rule => ({ bytes, access: "read" });
const write = (bytes: string): Rule => ({ bytes, access: "write" });
const optional = (rule: Rule): Rule => ({ ...rule, optional: true });
/** Of u64 or f64. */
const words = (rule: Rule): Rule => ({ ...rule, alignment: 8 });

/** f32 [n, width], `stride` floats between rows. */
const strided = (stride: string, width: string) => read(`4 * ((n - 1) * ${stride} + ${width})`);

type CorrectedName<N extends string> = N | `${N}LowRank` | `${N}Sparse`;
/** A value and the deltas added as it is read: that of factors, and that of rows, which only tokens run as decode have. */
function corrected<N extends string>(name: N, stride: string, width: string, base = strided(stride, width)) {
  const delta = optional(strided(stride, width));
  return { [name]: base, [`${name}LowRank`]: delta, [`${name}Sparse`]: delta } as Record<
    CorrectedName<N>,
    Rule
  >;
}

/**
 * int8 activations: codes i8 [n, codeStride], scales f32 and sums i32 [n, groups]. Absent where group is 0. sums16 i16 [n,
 * groups, 4], of groups of 64: written with them, read by weights with subgroups.
 */
const quantized = (access: Rule["access"], sums16 = `group == ${SUBGROUPED}`) => {
  const rule = (bytes: string, when = "group > 0"): Rule => ({
    bytes: `${when} ? ${bytes} : Size(0)`,
    access,
  });
  return {
    codes: rule("n * codeStride"),
    scales: rule("4 * n * groups"),
    sums: rule("4 * n * groups"),
    sums16: rule("8 * n * groups", sums16),
  };
};
const residual = (rule: (bytes: string) => Rule = read) => ({
  residualCodes: rule("residualInputs * rowBytes"),
  outputScale: rule("4 * residualOutputs"),
  channelScale: rule("4 * residualInputs"),
  norm: rule("4 * residualInputs"),
});
const FACTORS = {
  a: read("(1 + bf16) * rank * aStride"),
  b: read("(1 + bf16) * rank * bStride"),
  aScale: read("4 * rank"),
  bScale: read("4 * rank"),
};
/** A token's chosen channels: ascending indices, coefficients i16, their scale, their sum and how many they are. */
const selection = (access: Rule["access"]) => ({
  index: { bytes: "4 * n * channels", access } as Rule,
  coefficient: { bytes: "2 * n * channels", access } as Rule,
  selectionScale: { bytes: "4 * n", access } as Rule,
  selectionSum: { bytes: "4 * n", access } as Rule,
  selectionCount: { bytes: "4 * n", access } as Rule,
});
/** Where each token stands: its position, its sequence's row in the page table, and that table. */
const PAGES = {
  positions: read("4 * n"),
  sequences: read("4 * n"),
  pages: read("4 * mostSequences * mostPages"),
};
const CACHE_BYTES = `2 * pageCount * kvHeads * headDim * ${PAGE_POSITIONS}`;
const rotation = {
  cosines: optional(read("2 * context * headDim")),
  sines: optional(read("2 * context * headDim")),
};

export type Range = readonly [least: number, most: number];
const SIZE: Range = [1, 2 ** 26];
const STRIDE: Range = [0, 2 ** 26];
const COUNT: Range = [1, 2 ** 20];
const FLAG: Range = [0, 1];
const FORMAT: Range = [0, FORMAT_KINDS.length - 1];
const QUANTIZED_SIZES = { group: [0, 128], groups: [0, 2 ** 21], codeStride: STRIDE } as const;
const RESIDUAL_SIZES = {
  residualWidth: [0, 8],
  residualInputs: STRIDE,
  residualOutputs: STRIDE,
  rowBytes: STRIDE,
} as const;
const FACTOR_SIZES = {
  aStride: SIZE,
  bStride: SIZE,
  inputs: SIZE,
  outputs: SIZE,
  rank: COUNT,
  bf16: FLAG,
} as const;
const PAGE_SIZES = { pageCount: SIZE, mostSequences: COUNT, mostPages: SIZE, context: SIZE } as const;

const IS_QUANTIZED =
  "is_group(group) && (group == 0 || (groups == ceil_div(width, group) && codeStride >= groups * group))";
const IS_PACKED = "is_packed(format, group)";
const IS_RESIDUAL = "is_residual(residualWidth, residualOutputs, rowBytes)";
const IS_FACTORS = "aStride % 16 == 0 && bStride % 16 == 0 && aStride >= inputs && bStride >= outputs";
const HAS_CONTEXT = `context <= mostPages * ${PAGE_POSITIONS}`;

export interface Fields {
  readonly operands: Readonly<Record<string, Rule>>;
  readonly integers: Readonly<Record<string, Range>>;
  readonly reals: readonly string[];
  /** What must hold between integers, in C++. */
  readonly where?: readonly string[];
}

export const INSTRUCTIONS = {
  // Between lanes: publish this step's number at an event of the mailbox, or wait for it.
  signal: { operands: { event: words(write("8")) }, integers: {}, reals: [] },
  wait: { operands: { event: words(read("8")) }, integers: {}, reals: [] },
  embedding: {
    operands: {
      tokens: read("4 * n"),
      packed: read("packed_bytes(format, group, rows, width)"),
      out: write("4 * n * width"),
    },
    integers: { format: FORMAT, group: QUANTIZED_SIZES.group, rows: SIZE, width: SIZE },
    reals: [],
    where: [IS_PACKED],
  },
  // out = rms_norm(a [+ b]) of each `width` columns, `heads` of them in a row. rows: which rows of a and b.
  norm: {
    operands: {
      rows: optional(read("4 * n")),
      ...corrected("a", "aStride", "heads * width"),
      ...corrected("b", "bStride", "heads * width", optional(strided("bStride", "heads * width"))),
      weight: read("4 * width"),
      sum: optional(write("4 * n * heads * width")),
      out: write("4 * n * heads * width"),
      ...quantized("write"),
    },
    integers: { width: SIZE, heads: COUNT, aStride: STRIDE, bStride: STRIDE, ...QUANTIZED_SIZES },
    reals: ["epsilon"],
    where: [IS_QUANTIZED, "group == 0 || heads == 1"],
  },
  quantize: {
    operands: { x: strided("xStride", "width"), ...quantized("write") },
    integers: { width: SIZE, xStride: STRIDE, ...QUANTIZED_SIZES },
    reals: [],
    where: [IS_QUANTIZED],
  },
  siluMul: {
    operands: {
      ...corrected("gate", "gateStride", "width"),
      ...corrected("up", "upStride", "width"),
      out: write("4 * n * width"),
      ...quantized("write"),
    },
    integers: { width: SIZE, gateStride: STRIDE, upStride: STRIDE, ...QUANTIZED_SIZES },
    reals: [],
    where: [IS_QUANTIZED],
  },
  // kind: ELEMENTWISE. rows: which rows of a and b.
  elementwise: {
    operands: {
      rows: optional(read("4 * n")),
      ...corrected("a", "aStride", "width"),
      ...corrected("b", "bStride", "width", read("kind <= 1 ? 4 * ((n - 1) * bStride + width) : Size(0)")),
      out: write("4 * n * width"),
    },
    integers: { kind: [0, 3], width: SIZE, aStride: STRIDE, bStride: STRIDE },
    reals: [],
  },
  rope: {
    operands: {
      ...corrected("x", "xStride", "heads * headDim"),
      positions: read("4 * n"),
      cosines: read("2 * context * headDim"),
      sines: read("2 * context * headDim"),
      out: write("4 * n * heads * headDim"),
    },
    integers: { heads: COUNT, headDim: COUNT, xStride: STRIDE, context: SIZE },
    reals: [],
    where: ["headDim % 2 == 0"],
  },
  // Queries, keys and values: norm and rotation of each head of q and k, then k and v are appended to the cache.
  append: {
    operands: {
      ...corrected("q", "qStride", "heads * headDim"),
      ...corrected("k", "kStride", "kvHeads * headDim"),
      ...corrected("v", "vStride", "kvHeads * headDim"),
      qNorm: optional(read("4 * headDim")),
      kNorm: optional(read("4 * headDim")),
      ...rotation,
      ...PAGES,
      out: write("4 * n * heads * headDim"),
      cacheK: write(CACHE_BYTES),
      cacheV: write(CACHE_BYTES),
    },
    integers: {
      heads: COUNT,
      kvHeads: COUNT,
      headDim: COUNT,
      qStride: STRIDE,
      kStride: STRIDE,
      vStride: STRIDE,
      ...PAGE_SIZES,
      layer: [0, 2 ** 20],
    },
    reals: ["qEpsilon", "kEpsilon"],
    where: ["headDim % 2 == 0", HAS_CONTEXT],
  },
  // tiles: i32 [first token, count] of tokens that follow each other in one sequence.
  attend: {
    operands: {
      q: read("4 * n * heads * headDim"),
      cacheK: read(CACHE_BYTES),
      cacheV: read(CACHE_BYTES),
      tiles: read("8 * n"),
      ...PAGES,
      out: write("4 * n * heads * headDim"),
    },
    integers: { heads: COUNT, kvHeads: COUNT, headDim: COUNT, ...PAGE_SIZES },
    reals: ["scale"],
    where: ["heads % kvHeads == 0", HAS_CONTEXT],
  },
  // Reads x where weights are bf16, its int8 codes elsewhere. A residual is added in prompt steps.
  linear: {
    operands: {
      packed: read("packed_bytes(format, group, rows, inputs)"),
      x: read("group == 0 ? 4 * ((n - 1) * xStride + inputs) : Size(0)"),
      ...quantized("read", `format >= ${FORMAT_KINDS.indexOf("q4s")}`),
      y: write("4 * ((n - 1) * yStride + rows)"),
      ...residual((bytes) => read(`residualWidth > 0 ? ${bytes} : Size(0)`)),
    },
    integers: {
      format: FORMAT,
      rows: SIZE,
      inputs: SIZE,
      xStride: STRIDE,
      yStride: STRIDE,
      ...QUANTIZED_SIZES,
      ...RESIDUAL_SIZES,
    },
    reals: [],
    where: [
      IS_PACKED,
      IS_QUANTIZED.replaceAll("width", "inputs"),
      "yStride >= rows",
      `residualWidth == 0 || (group > 0 && residualInputs == inputs && residualOutputs == rows && ${IS_RESIDUAL})`,
    ],
  },
  // At most `channels` of the inputs whose scores reach the threshold; 0: all do.
  sparseSelect: {
    operands: { x: strided("xStride", "residualInputs"), ...residual(), ...selection("write") },
    integers: { xStride: STRIDE, channels: COUNT, ...RESIDUAL_SIZES },
    reals: ["threshold"],
    where: [IS_RESIDUAL, "residualInputs > 0 && channels <= residualInputs"],
  },
  sparseSum: {
    operands: {
      ...residual(),
      ...selection("read"),
      delta: write("4 * ((n - 1) * deltaStride + residualOutputs)"),
    },
    integers: { channels: COUNT, deltaStride: STRIDE, ...RESIDUAL_SIZES },
    reals: [],
    where: [IS_RESIDUAL, "residualInputs > 0 && deltaStride >= residualOutputs"],
  },
  lowRankDown: {
    operands: { x: strided("xStride", "inputs"), ...FACTORS, hidden: write("4 * n * hiddenStride") },
    integers: { xStride: STRIDE, hiddenStride: SIZE, ...FACTOR_SIZES },
    reals: [],
    where: [IS_FACTORS, "hiddenStride >= rank"],
  },
  lowRankUp: {
    operands: {
      hidden: read("4 * n * hiddenStride"),
      ...FACTORS,
      delta: write("4 * ((n - 1) * deltaStride + outputs)"),
    },
    integers: { hiddenStride: SIZE, deltaStride: SIZE, ...FACTOR_SIZES },
    reals: [],
    where: [IS_FACTORS, "hiddenStride >= rank && deltaStride >= outputs"],
  },
  // sums += x_i^2 (products 0), or += x_i x_j (products 1), over the tokens of the step, in their order; f64.
  observe: {
    operands: {
      x: strided("xStride", "width"),
      sums: words(write("products == 1 ? 8 * width * width : 8 * width")),
    },
    integers: { width: SIZE, xStride: STRIDE, products: FLAG },
    reals: [],
  },
} as const satisfies Record<string, Fields>;

/** `kind` of elementwise: a + b, a * b, silu(a), a. */
export const ELEMENTWISE = ["add", "mul", "silu", "copy"] as const;

export type Opcode = keyof typeof INSTRUCTIONS;
type Spec<P extends Opcode> = typeof INSTRUCTIONS[P];
export type OperandName<P extends Opcode> = keyof Spec<P>["operands"] & string;
export type IntegerName<P extends Opcode> = keyof Spec<P>["integers"] & string;
export type RealName<P extends Opcode> = Spec<P>["reals"][number];

/** Where an operand lies: bytes from the start of a segment. */
export interface Operand {
  readonly segment: Segment;
  readonly offset: number;
}

/** One instruction by names. Operands left out are null pointers; integers and reals must all be given. */
export interface InstructionOf<P extends Opcode> {
  readonly op: P;
  readonly operands: { readonly [K in OperandName<P>]?: Operand | undefined };
  readonly integers: { readonly [K in IntegerName<P>]: number };
  readonly reals: { readonly [K in RealName<P>]: number };
  /** What it runs over: every token of the step, or the rows whose logits are wanted. */
  readonly over: "tokens" | "rows";
  /** When it runs: in every step, or only where tokens run as decode. */
  readonly when: "always" | "decode";
  /** The threads of the lane wait for each other after it, where any work was begun since they last did. */
  readonly barrier: boolean;
  /**
   * How many instructions back the one lies whose whole work must be done before this one starts, where no barrier
   * lies between them (0: none). It must run whenever this one does.
   */
  readonly awaits: number;
}
export type Instruction = { [P in Opcode]: InstructionOf<P> }[Opcode];
export const OPCODES = Object.keys(INSTRUCTIONS) as Opcode[];
