/** Python's operators on static values, and on tensors where the graph has an op for them. */
import type { Span } from "./diagnostics.ts";
import type { Tracing } from "./tracing.ts";
import { describe, is, isList, type Value } from "./values.ts";

export type BinaryOperator = "+" | "-" | "*" | "/" | "//" | "%" | "**";
export const COMPARISONS = ["==", "!=", "<", "<=", ">", ">=", "in", "not in", "is", "is not"] as const;
export type ComparisonOperator = typeof COMPARISONS[number];

export const ARITHMETIC: { readonly [O in BinaryOperator]: (a: number, b: number) => number } = {
  "+": (a, b) => a + b,
  "-": (a, b) => a - b,
  "*": (a, b) => a * b,
  "/": (a, b) => a / b,
  "//": (a, b) => Math.floor(a / b),
  // The sign of Python's remainder is the divisor's.
  "%": (a, b) => a - b * Math.floor(a / b),
  "**": (a, b) => a ** b,
};
const DIVIDES: ReadonlySet<BinaryOperator> = new Set<BinaryOperator>(["/", "//", "%"]);
/** Lists within lists that are compared. */
const DEEPEST = 32;

export function binary(operator: BinaryOperator, a: Value, b: Value, span: Span, tracing: Tracing): Value {
  const tensors = is("tensor", a) || is("tensor", b);
  if (is("tensor", a) && is("tensor", b)) {
    if (operator === "+") return tracing.node("add", [a, b], {}, span);
    if (operator === "*") return tracing.node("mul", [a, b], {}, span);
  }
  if (typeof a === "number" && typeof b === "number") {
    if (DIVIDES.has(operator) && b === 0) return tracing.fail(span, `division of ${a} by zero`);
    const result = ARITHMETIC[operator](a, b);
    return Number.isFinite(result) ? result : tracing.fail(span, `${a} ${operator} ${b} is no finite number`);
  }
  if (operator === "+" && isList(a) && isList(b)) {
    tracing.length(a.length + b.length, span, `a list of ${a.length + b.length}`);
    return [...a, ...b];
  }
  const accepted = tensors ? ["accepted: + and * of two tensors of one shape"] : [];
  return tracing.fail(span, `no operator ${operator} of ${describe(a)} and ${describe(b)}`, ...accepted);
}

export function compare(
  operator: ComparisonOperator,
  a: Value,
  b: Value,
  span: Span,
  tracing: Tracing,
): boolean {
  const not = operator === "!=" || operator === "not in" || operator === "is not";
  const met = holds(operator, a, b, span, tracing);
  if (met !== undefined) return met !== not;
  return tracing.fail(span, `cannot compare ${describe(a)} ${operator} ${describe(b)}`);
}

/** A comparison, or the one that `!=`, `not in` and `is not` negate; undefined where it has no static answer. */
function holds(
  operator: ComparisonOperator,
  a: Value,
  b: Value,
  span: Span,
  tracing: Tracing,
): boolean | undefined {
  switch (operator) {
    case "is":
    case "is not": {
      if (b === null || typeof b === "boolean") return a === b;
      const found = `${operator} compares with None, True or False, found ${describe(b)}`;
      return tracing.fail(span, found, "use ==");
    }
    case "==":
    case "!=":
      return equal(a, b, tracing);
    case "in":
    case "not in":
      if (typeof b === "string" && typeof a === "string") return b.includes(a);
      if (is("record", b) && typeof a === "string") return tracing.field(b, a) !== undefined;
      return isList(b) ? b.some((item) => equal(item, a, tracing)) : undefined;
  }
  if (typeof a !== "number" || typeof b !== "number") return undefined;
  if (operator === "<") return a < b;
  if (operator === "<=") return a <= b;
  return operator === ">" ? a > b : a >= b;
}

/** Python's ==, in which True is 1; undefined for tensors. */
function equal(a: Value, b: Value, tracing: Tracing, depth = 0): boolean | undefined {
  tracing.spend(1);
  if (is("tensor", a) || is("tensor", b) || depth > DEEPEST) return undefined;
  if (!isList(a) || !isList(b)) return number(a) === number(b);
  if (a === b || a.length !== b.length) return a === b;
  for (const [i, item] of a.entries()) {
    const same = equal(item, b[i] ?? null, tracing, depth + 1);
    if (same !== true) return same;
  }
  return true;
}

function number(value: Value): Value {
  return typeof value === "boolean" ? Number(value) : value;
}
