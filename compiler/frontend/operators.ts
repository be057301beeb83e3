/** Python's operators on static values, and on tensors where the graph has an op for them. */
import type { Span } from "./diagnostics.ts";
import type { Tracing } from "./tracing.ts";
import { describe, equal, isObject, isSequence, isTensor, isUnknown, UNKNOWN, type Value } from "./values.ts";

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

export function binary(operator: BinaryOperator, a: Value, b: Value, span: Span, tracing: Tracing): Value {
  if (isUnknown(a) || isUnknown(b)) return UNKNOWN;
  if (isTensor(a) && isTensor(b)) {
    if (operator === "+") return tracing.node("add", [a, b], {}, span);
    if (operator === "*") return tracing.node("mul", [a, b], {}, span);
  }
  if (isTensor(a) || isTensor(b)) {
    return tracing.fail(
      span,
      `no operator ${operator} of ${describe(a)} and ${describe(b)}`,
      "accepted: + and * of two tensors of one shape",
    );
  }
  if (typeof a === "number" && typeof b === "number") {
    if (DIVIDES.has(operator) && b === 0) return tracing.fail(span, `division of ${a} by zero`);
    const result = ARITHMETIC[operator](a, b);
    if (Number.isFinite(result)) return result;
    return tracing.fail(span, `${a} ${operator} ${b} is no finite number`);
  }
  if (operator === "+" && isSequence(a) && isSequence(b) && a.kind === b.kind) {
    tracing.spend(a.items.length + b.items.length);
    return { kind: a.kind, items: [...a.items, ...b.items] };
  }
  return tracing.fail(span, `no operator ${operator} of ${describe(a)} and ${describe(b)}`);
}

export function compare(
  operator: ComparisonOperator,
  a: Value,
  b: Value,
  span: Span,
  tracing: Tracing,
): Value {
  if (isUnknown(a) || isUnknown(b)) return UNKNOWN;
  switch (operator) {
    case "is":
    case "is not": {
      const constant = b === null || typeof b === "boolean";
      if (!constant) {
        return tracing.fail(
          span,
          `${operator} compares with None, True or False, found ${describe(b)}`,
          "use ==",
        );
      }
      return (a === b) === (operator === "is");
    }
    case "==":
    case "!=": {
      const same = equal(a, b, () => tracing.spend(1));
      if (same !== undefined) return same === (operator === "==");
      break;
    }
    case "in":
    case "not in": {
      const found = contains(b, a, tracing);
      if (found !== undefined) return found === (operator === "in");
      break;
    }
    default:
      if (typeof a === "number" && typeof b === "number") {
        if (operator === "<") return a < b;
        if (operator === "<=") return a <= b;
        return operator === ">" ? a > b : a >= b;
      }
  }
  return tracing.fail(span, `cannot compare ${describe(a)} ${operator} ${describe(b)}`);
}

function contains(container: Value, item: Value, tracing: Tracing): boolean | undefined {
  if (typeof container === "string" && typeof item === "string") return container.includes(item);
  if (!isObject(container)) return undefined;
  if (isSequence(container)) {
    return container.items.some((other) => equal(other, item, () => tracing.spend(1)) === true);
  }
  if (container.kind === "range") {
    const index = typeof item === "number" ? (item - container.start) / container.step : NaN;
    return Number.isInteger(index) && index >= 0 && index < container.length;
  }
  if (container.kind === "record" && typeof item === "string") {
    return tracing.field(container, item) !== undefined;
  }
  return undefined;
}
