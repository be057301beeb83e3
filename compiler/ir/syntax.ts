/**
 * How each op's parameters stand in the graph's text, in both directions: total over Op. A call is
 * `op(inputs..., "strings"..., name=value...)`; strings name weights and windows, keywords are the rest.
 */
import type { RopeTable } from "./graph.ts";
import type { Op, Params } from "./ops.ts";
import { packedName, packedPaths } from "./naming.ts";
import type { FactorDType } from "../weights/correction.ts";
import { RESIDUAL_WIDTHS } from "../weights/correction.ts";
import { formatText, parseFormat, type WeightFormat } from "../weights/format.ts";

/** A parameter's value in the text. */
export type Literal = number | string | readonly number[];

/** What stands in the parentheses after the input values. */
export interface Call {
  readonly strings: readonly string[];
  readonly keywords: Readonly<Record<string, Literal>>;
}

/** The arguments of a call while they are read; each may be taken once, and a parser rejects what is left. */
export interface Arguments {
  /** The next string argument; `what` is for the message when there is none. */
  string(what: string): string;
  /** Keyword `name`, checked by `accept`, which returns undefined for what does not fit `expected`. */
  keyword<T>(name: string, expected: string, accept: (value: Literal) => T | undefined): T;
  optional<T>(name: string, expected: string, accept: (value: Literal) => T | undefined): T | undefined;
  /** Raises an error at the call. */
  fail(message: string): never;
}

interface Syntax<T> {
  write(params: T): Call;
  read(call: Arguments): T;
}

const number = (value: Literal) => typeof value === "number" ? value : undefined;
const whole = (value: Literal) => Number.isSafeInteger(value) ? value as number : undefined;
const format = (value: Literal) => typeof value === "string" ? parseFormat(value) : undefined;
const residualWidth = (value: Literal) => RESIDUAL_WIDTHS.find((w) => w === value);
const factorDType = (value: Literal): FactorDType | undefined =>
  value === "i8" || value === "bf16" ? value : undefined;
const numbers = (value: Literal): readonly number[] | undefined => {
  const list = typeof value === "number" ? [value] : value;
  return typeof list === "string" ? undefined : list;
};

/** A single number stands without parentheses. */
function list(values: readonly number[]): Literal {
  const [first] = values;
  return values.length === 1 && first !== undefined ? first : values;
}

function formatKeyword(format: WeightFormat | undefined): Record<string, Literal> {
  return format === undefined ? {} : { format: formatText(format) };
}

function readFormat(call: Arguments): { format?: WeightFormat } {
  const found = call.optional("format", 'a format such as "q4g64" or "bf16"', format);
  return found === undefined ? {} : { format: found };
}

const nothing: Syntax<Record<never, never>> = {
  write: () => ({ strings: [], keywords: {} }),
  read: () => ({}),
};

const norm: Syntax<Params["rms_norm" | "add_rms_norm"]> = {
  write: ({ path, epsilon }) => ({ strings: [path], keywords: { epsilon } }),
  read: (call) => ({
    path: call.string("the norm's path"),
    epsilon: call.keyword("epsilon", "a number", number),
  }),
};

export const SYNTAX: { readonly [P in Op]: Syntax<Params[P]> } = {
  embedding: {
    write: ({ path, rows, width, format }) => ({
      strings: [path],
      keywords: { rows, width, ...formatKeyword(format) },
    }),
    read: (call) => ({
      path: call.string("the embedding's path"),
      rows: call.keyword("rows", "a whole number", whole),
      width: call.keyword("width", "a whole number", whole),
      ...readFormat(call),
    }),
  },
  linear: {
    write: ({ weights, format }) => ({
      strings: [packedName(weights)],
      keywords: { outputs: list(weights.map((w) => w.outputs)), ...formatKeyword(format) },
    }),
    read(call) {
      const paths = packedPaths(call.string("the weight's path"));
      const outputs = call.keyword(
        "outputs",
        "a whole number, or one for each weight in parentheses",
        numbers,
      );
      if (outputs.length !== paths.length) {
        return call.fail(`expected outputs of ${paths.length} weights, found ${outputs.length}`);
      }
      const weights = paths.map((path, i) => ({ path, outputs: outputs[i] ?? 0 }));
      return { weights, ...readFormat(call) };
    },
  },
  rms_norm: norm,
  add_rms_norm: norm,
  rope: {
    write: ({ table }) => ({ strings: [table], keywords: {} }),
    read: (call) => ({ table: call.string("the name of the rotation table") }),
  },
  split_heads: {
    write: ({ headDim }) => ({ strings: [], keywords: { head_dim: headDim } }),
    read: (call) => ({ headDim: call.keyword("head_dim", "a whole number", whole) }),
  },
  merge_heads: nothing,
  attention: {
    write: ({ layer, scale }) => ({ strings: [], keywords: { layer, scale } }),
    read: (call) => ({
      layer: call.keyword("layer", "a whole number", whole),
      scale: call.keyword("scale", "a number", number),
    }),
  },
  silu: nothing,
  add: nothing,
  mul: nothing,
  silu_mul: nothing,
  low_rank: {
    write: ({ window, rank, outputs, dtype }) => ({ strings: [window], keywords: { rank, outputs, dtype } }),
    read: (call) => ({
      window: call.string("the window"),
      rank: call.keyword("rank", "a whole number", whole),
      outputs: call.keyword("outputs", "a whole number", whole),
      dtype: call.keyword("dtype", '"i8" or "bf16"', factorDType),
    }),
  },
  sparse_residual: {
    write: ({ window, channels, outputs, width }) => ({
      strings: [window],
      keywords: { channels, outputs, width },
    }),
    read: (call) => ({
      window: call.string("the window"),
      channels: call.keyword("channels", "a whole number", whole),
      outputs: call.keyword("outputs", "a whole number", whole),
      width: call.keyword("width", `bits, one of ${RESIDUAL_WIDTHS.join(", ")}`, residualWidth),
    }),
  },
  merge: {
    write: ({ window, deltas, slack }) => ({ strings: [window], keywords: { deltas, slack } }),
    read: (call) => ({
      window: call.string("the window"),
      deltas: call.keyword("deltas", "a whole number", whole),
      slack: call.keyword("slack", "a whole number", whole),
    }),
  },
};

/** A rotation table: not a node, but a call like one. */
export const ROPE_TABLE: Syntax<Omit<RopeTable, "name">> = {
  write: ({ frequencies, scale }) => ({ strings: [], keywords: { frequencies: list(frequencies), scale } }),
  read: (call) => ({
    frequencies: call.keyword("frequencies", "numbers in parentheses", numbers),
    scale: call.keyword("scale", "a number", number),
  }),
};

/** The call of a node's parameters. */
export function writeParams<P extends Op>(op: P, params: Params[P]): Call {
  return SYNTAX[op].write(params);
}

export function literalText(value: Literal): string {
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return JSON.stringify(value);
  return `(${value.join(", ")})`;
}
