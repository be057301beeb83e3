/** Expressions of the subset: a rule for each kind of node of tree-sitter's grammar that is in it. */
import type { Node } from "web-tree-sitter";
import { readAttribute, readItem } from "./attributes.ts";
import { call } from "./calls.ts";
import { described, fields, isPattern, leaves, parts } from "./nodes.ts";
import { ARITHMETIC, binary, type BinaryOperator, compare, COMPARISONS } from "./operators.ts";
import type { Unit } from "./unit.ts";
import { describe, type Evaluate, is, type Scope, UNKNOWN, type Value } from "./values.ts";

/** Undefined for what was reported. */
type Rule = (node: Node, unit: Unit) => Evaluate | undefined;

const ACCEPTED = "accepted: numbers, strings, names, attributes, calls, lists, arithmetic, comparisons";

/** Of what was reported; never run. */
const unknown: Evaluate = () => UNKNOWN;

/** Compiles an expression, and reports what of it is outside the subset. */
export function expression(node: Node | undefined, unit: Unit): Evaluate {
  if (!node) return unknown;
  const span = unit.span(node);
  const { tracing } = unit;
  const rule = RULES[node.type];
  const compile = () => rule ? rule(node, unit) : unit.outside(node, ACCEPTED);
  const evaluate = unit.nested(node, compile) ?? unknown;
  return (scope) => tracing.nested(span, () => evaluate(scope));
}

const RULES: Readonly<Record<string, Rule>> = {
  integer: number,
  float: number,
  true: () => () => true,
  false: () => () => false,
  none: () => () => null,
  string: (node, unit) => constant(string(node, unit)),
  concatenated_string: (node, unit) => constant(string(node, unit)),
  identifier: (node, unit) => unit.name(node),
  attribute,
  subscript,
  call: callExpression,
  list: sequence,
  tuple: sequence,
  expression_list: sequence,
  list_comprehension: comprehension,
  parenthesized_expression: (node, unit) => expression(parts(node)[0], unit),
  unary_operator: unary,
  not_operator(node, unit) {
    const met = condition(fields(node).argument, unit);
    return (scope) => !met(scope);
  },
  binary_operator(node, unit) {
    const { operator: sign, left: first, right: second } = fields(node);
    const [operator, left, right] = [sign?.text ?? "", expression(first, unit), expression(second, unit)];
    const span = unit.span(node);
    if (isBinary(operator)) return (scope) => binary(operator, left(scope), right(scope), span, unit.tracing);
    const accepted = `accepted: ${Object.keys(ARITHMETIC).join(" ")}`;
    return unit.unsupported(node, `operator ${operator} is outside the subset`, accepted);
  },
  boolean_operator(node, unit) {
    const { operator, left: first = node, right: second } = fields(node);
    const [left, right] = [expression(first, unit), expression(second, unit)];
    const [or, span] = [operator?.text === "or", unit.span(first)];
    return (scope) => {
      const value = left(scope);
      return unit.tracing.truth(value, span) === or ? value : right(scope);
    };
  },
  comparison_operator: comparison,
  conditional_expression(node, unit) {
    const [then, test, otherwise] = parts(node);
    const met = condition(test, unit);
    const [yes, no] = [expression(then, unit), expression(otherwise, unit)];
    return (scope) => met(scope) ? yes(scope) : no(scope);
  },
};

function isBinary(operator: string): operator is BinaryOperator {
  return Object.hasOwn(ARITHMETIC, operator);
}

/** A condition, whose truth must be static. */
export function condition(node: Node | undefined, unit: Unit): (scope: Scope) => boolean {
  const evaluate = expression(node, unit);
  const span = node ? unit.span(node) : unit.tracing.at;
  return (scope) => unit.tracing.truth(evaluate(scope), span);
}

function constant(value: Value | undefined): Evaluate | undefined {
  return value === undefined ? undefined : () => value;
}

function number(node: Node, unit: Unit): Evaluate | undefined {
  const text = node.text.replaceAll("_", "");
  const value = /^[\d.]/.test(text) && !/[jJlL]$/.test(text) ? Number(text) : NaN;
  if (Number.isFinite(value) && (node.type === "float" || Number.isSafeInteger(value))) return () => value;
  const shown = node.text.length > 40 ? `${node.text.slice(0, 40)}...` : node.text;
  const accepted = "accepted: integers up to 2^53, finite floats";
  return unit.unsupported(node, `${shown} is no number that is kept exactly`, accepted);
}

function string(node: Node, unit: Unit): string | undefined {
  if (node.type === "concatenated_string") {
    const pieces = parts(node).map((n) => string(n, unit));
    return pieces.includes(undefined) ? undefined : pieces.join("");
  }
  const [, prefix = "", , content = ""] = /^(\w*)("""|'''|"|')([^]*)\2$/.exec(node.text) ?? [];
  const accepted = 'accepted: plain strings, "text"';
  if (prefix !== "") {
    return unit.unsupported(node, `a string with prefix ${prefix} is outside the subset`, accepted);
  }
  if (!content.includes("\\")) return content;
  return unit.unsupported(node, "a backslash in a string is outside the subset", accepted);
}

function attribute(node: Node, unit: Unit): Evaluate | undefined {
  const { object: owner, attribute: field } = fields(node);
  if (!owner || !field) return undefined;
  const object = expression(owner, unit);
  const [name, span] = [field.text, unit.span(field)];
  return (scope) => readAttribute(object(scope), name, span, unit.tracing);
}

function subscript(node: Node, unit: Unit): Evaluate {
  const [first, ...others] = node.childrenForFieldName("subscript");
  if (others.length > 0) {
    unit.unsupported(node, "several indices are outside the subset", "accepted: one index, a[i]");
  }
  const [object, index] = [expression(fields(node).value, unit), expression(first, unit)];
  const [span, indexSpan] = [unit.span(node), unit.span(first ?? node)];
  return (scope) => readItem(object(scope), index(scope), span, indexSpan, unit.tracing);
}

function sequence(node: Node, unit: Unit): Evaluate {
  const items = parts(node).map((item) => expression(item, unit));
  return (scope) => items.map((item) => item(scope));
}

function unary(node: Node, unit: Unit): Evaluate | undefined {
  const { operator, argument } = fields(node);
  const operand = expression(argument, unit);
  if (operator?.text === "+") return operand;
  if (operator?.text !== "-") {
    return unit.unsupported(
      node,
      `operator ${operator?.text} is outside the subset`,
      "accepted: -x, +x, not x",
    );
  }
  const span = unit.span(node);
  return (scope) => {
    const value = operand(scope);
    return typeof value === "number" ? -value : unit.tracing.fail(span, `cannot negate ${describe(value)}`);
  };
}

/** `a < b <= c`: each operand is compared with the next. */
function comparison(node: Node, unit: Unit): Evaluate | undefined {
  const found = node.childrenForFieldName("operators").map((n) => n.type);
  const operators = found.map((operator) => COMPARISONS.find((known) => known === operator))
    .filter((operator) => operator !== undefined);
  const operands = parts(node).map((operand) => expression(operand, unit));
  if (operators.length < found.length) {
    return unit.unsupported(node, `comparison ${found.join(" ")} is outside the subset`);
  }
  const span = unit.span(node);
  return (scope) => {
    const values = operands.map((operand) => operand(scope));
    return operators.every((operator, i) =>
      compare(operator, values[i] ?? null, values[i + 1] ?? null, span, unit.tracing)
    );
  };
}

/** `[body for target in iterable if condition]`, one loop. */
function comprehension(node: Node, unit: Unit): Evaluate | undefined {
  const clauses = parts(node).filter((n) => n.type === "for_in_clause");
  const [clause] = clauses;
  const { left, right } = clause ? fields(clause) : {};
  if (!left || !right) return undefined;
  if (clauses.length > 1 || clause?.children.some((n) => n.type === "async")) {
    unit.unsupported(clauses[1] ?? node, "one `for` a comprehension", "nest a second comprehension instead");
  }
  const iterable = expression(right, unit);
  const span = unit.span(right);
  return unit.withLocals(leaves(left).map((n) => n.text), () => {
    const assign = target(left, unit);
    const conditions = parts(node).filter((n) => n.type === "if_clause")
      .map((n) => condition(parts(n)[0], unit));
    const body = expression(fields(node).body, unit);
    return (scope) => {
      const inner: Scope = new Map(scope);
      return unit.tracing.items(iterable(scope), span).flatMap((item) => {
        assign(item, inner);
        return conditions.every((met) => met(inner)) ? [body(inner)] : [];
      });
    };
  });
}

function callExpression(node: Node, unit: Unit): Evaluate | undefined {
  const { function: callee, arguments: list } = fields(node);
  if (!callee || !list) return undefined;
  // PyTorch needs it, and it does nothing here.
  if (callee.text === "super().__init__") return () => null;
  if (list.type !== "argument_list") {
    const message = "a generator as argument is outside the subset";
    return unit.unsupported(list, message, "write a list comprehension, [...]");
  }
  const read = (value: Node, at: Node) => {
    const [evaluate, span] = [expression(value, unit), unit.span(at)];
    return (scope: Scope) => ({ value: evaluate(scope), span });
  };
  const positional: ReturnType<typeof read>[] = [];
  const keywords = new Map<string, ReturnType<typeof read>>();
  for (const argument of parts(list).filter((n) => !n.isError)) {
    const { name, value } = fields(argument);
    if (argument.type === "list_splat" || argument.type === "dictionary_splat") {
      unit.unsupported(argument, "unpacked arguments are outside the subset", "write the arguments out");
    } else if (argument.type !== "keyword_argument") {
      if (keywords.size > 0) unit.unsupported(argument, "a positional argument follows a named one");
      positional.push(read(argument, argument));
    } else if (name && value) {
      if (keywords.has(name.text)) unit.unsupported(argument, `argument ${name.text} is given twice`);
      keywords.set(name.text, read(value, argument));
    }
  }
  const callable = expression(callee, unit);
  const [span, calleeSpan] = [unit.span(node), unit.span(callee)];
  return (scope) => {
    const found = callable(scope);
    const site = {
      positional: positional.map((argument) => argument(scope)),
      keywords: new Map([...keywords].map(([name, argument]) => [name, argument(scope)])),
      span,
    };
    return call(found, site, calleeSpan, unit.tracing);
  };
}

type Assign = (value: Value, scope: Scope) => void;

/** What can be assigned to: a name, an attribute of self, or several of them. */
export function target(node: Node, unit: Unit): Assign {
  const { tracing } = unit;
  const [text, span] = [node.text, unit.span(node)];
  if (node.type === "identifier") return (value, scope) => scope.set(text, value);
  if (node.type === "attribute") {
    const { object, attribute } = fields(node);
    const [owner, name] = [expression(object, unit), attribute?.text ?? ""];
    return (value, scope) => {
      const object = owner(scope);
      if (is("module", object) && object.constructing) {
        object.attributes.set(name, value);
        tracing.adopt(object, name, value);
        return;
      }
      const late = is("module", object);
      const found = late ? "an attribute set outside __init__" : `an attribute of ${describe(object)}`;
      tracing.fail(span, `cannot assign to ${found}`, "accepted: self.name = value, in __init__");
    };
  }
  if (isPattern(node)) {
    const items = unit.nested(node, () => parts(node).map((n) => target(n, unit))) ?? [];
    return (value, scope) => {
      const values = tracing.items(value, span);
      if (values.length !== items.length) {
        tracing.fail(span, `${items.length} names for ${values.length} values`);
      }
      items.forEach((assign, i) => assign(values[i] ?? null, scope));
    };
  }
  const accepted = "accepted: a name, an attribute of self, or several names";
  unit.unsupported(node, `cannot assign to ${described(node)}`, accepted);
  return () => {};
}
