/** Expressions of the subset, from tree-sitter's nodes; see lower.ts. */
import type { Node } from "web-tree-sitter";
import type { Diagnostics } from "./diagnostics.ts";
import { described, parts, spanOf } from "./nodes.ts";
import type { BinaryOperator, ComparisonOperator, Expression, Keyword, Target } from "./syntax.ts";

/** What expressions need of the lowering around them. */
export interface Reporter {
  readonly diagnostics: Diagnostics;
  unsupported(node: Node, what: string, ...notes: string[]): void;
  nested<R>(node: Node, visit: () => R, otherwise: R): R;
  target(node: Node): Target | undefined;
}

const BINARY: ReadonlySet<string> = new Set<BinaryOperator>(["+", "-", "*", "/", "//", "%", "**"]);
const COMPARISONS: ReadonlySet<string> = new Set<ComparisonOperator>(
  ["==", "!=", "<", "<=", ">", ">=", "in", "not in", "is", "is not"],
);
const isBinary = (text: string): text is BinaryOperator => BINARY.has(text);
const isComparison = (text: string): text is ComparisonOperator => COMPARISONS.has(text);

const INSTEAD: Readonly<Record<string, string>> = {
  lambda: "define a function with def",
  generator_expression: "write a list comprehension, [... for ... in ...]",
  set_comprehension: "write a list comprehension, [... for ... in ...]",
  dictionary_comprehension: "write a list comprehension, [... for ... in ...]",
  dictionary: "use attributes of self, or a list",
  set: "use a list",
  named_expression: "assign in a statement of its own",
  list_splat: "write the items out",
  slice: "accepted: one index, a[i]",
  ellipsis: "accepted: one index, a[i]",
  await: "call it directly",
};

const ESCAPES: Readonly<Record<string, string>> = {
  "\\n": "\n",
  "\\t": "\t",
  "\\\\": "\\",
  "\\'": "'",
  '\\"': '"',
};

export function lowerExpression(node: Node, reporter: Reporter): Expression {
  const invalid: Expression = { kind: "invalid", span: spanOf(node) };
  return reporter.nested(node, () => lowered(node, reporter) ?? invalid, invalid);
}

function lowered(node: Node, reporter: Reporter): Expression | undefined {
  const span = spanOf(node);
  const visit = (child: Node | null | undefined): Expression =>
    child ? lowerExpression(child, reporter) : { kind: "invalid", span };
  const field = (name: string): Expression => visit(node.childForFieldName(name));

  switch (node.type) {
    case "integer":
    case "float":
      return number(node, reporter);
    case "true":
      return { kind: "constant", value: true, span };
    case "false":
      return { kind: "constant", value: false, span };
    case "none":
      return { kind: "constant", value: null, span };
    case "string":
    case "concatenated_string": {
      const text = string(node, reporter);
      return text === undefined ? undefined : { kind: "constant", value: text, span };
    }
    case "identifier":
      return { kind: "name", name: node.text, span };
    case "attribute": {
      const name = node.childForFieldName("attribute");
      if (!name) return undefined;
      return { kind: "attribute", object: field("object"), name: name.text, nameSpan: spanOf(name), span };
    }
    case "subscript": {
      const indices = node.childrenForFieldName("subscript");
      if (indices.length !== 1) {
        reporter.unsupported(node, "several indices are outside the subset", "accepted: one index, a[i]");
      }
      return { kind: "subscript", object: field("value"), index: visit(indices[0]), span };
    }
    case "call":
      return call(node, reporter);
    case "list":
    case "tuple":
      return { kind: node.type, items: parts(node).map(visit), span };
    case "expression_list":
      return { kind: "tuple", items: parts(node).map(visit), span };
    case "list_comprehension":
      return comprehension(node, reporter);
    case "parenthesized_expression":
      return visit(parts(node)[0]);
    case "unary_operator": {
      const operator = node.childForFieldName("operator")?.text;
      if (operator === "-") return { kind: "negate", operand: field("argument"), span };
      if (operator === "+") return field("argument");
      reporter.unsupported(node, `operator ${operator} is outside the subset`, "accepted: -x, +x, not x");
      return undefined;
    }
    case "not_operator":
      return { kind: "not", operand: field("argument"), span };
    case "binary_operator": {
      const operator = node.childForFieldName("operator")?.text ?? "";
      const left = field("left");
      const right = field("right");
      if (isBinary(operator)) return { kind: "binary", operator, left, right, span };
      reporter.unsupported(
        node,
        `operator ${operator} is outside the subset`,
        `accepted: ${[...BINARY].join(" ")}`,
      );
      return undefined;
    }
    case "boolean_operator": {
      const operator = node.childForFieldName("operator")?.text === "or" ? "or" : "and";
      return { kind: "boolean", operator, left: field("left"), right: field("right"), span };
    }
    case "comparison_operator": {
      const operators = node.childrenForFieldName("operators").map((n) => n.type);
      const known = operators.filter(isComparison);
      const operands = parts(node).map(visit);
      if (known.length === operators.length) return { kind: "comparison", operands, operators: known, span };
      reporter.unsupported(node, `comparison ${operators.join(" ")} is outside the subset`);
      return undefined;
    }
    case "conditional_expression": {
      const [then, condition, otherwise] = parts(node);
      return {
        kind: "conditional",
        condition: visit(condition),
        then: visit(then),
        otherwise: visit(otherwise),
        span,
      };
    }
    default:
      if (!node.isError && !node.isMissing) {
        const note = INSTEAD[node.type] ??
          "accepted: numbers, strings, names, attributes, calls, lists, arithmetic, comparisons";
        reporter.unsupported(node, `${described(node)} is outside the subset`, note);
      }
      return undefined;
  }
}

function number(node: Node, reporter: Reporter): Expression | undefined {
  const text = node.text.replaceAll("_", "");
  const value = /^[\d.]/.test(text) && !/[jJlL]$/.test(text) ? Number(text) : NaN;
  if (Number.isFinite(value) && (node.type === "float" || Number.isSafeInteger(value))) {
    return { kind: "constant", value, span: spanOf(node) };
  }
  reporter.unsupported(
    node,
    `${shorten(node.text)} is no number that is kept exactly`,
    "accepted: integers up to 2^53, finite floats",
  );
  return undefined;
}

function string(node: Node, reporter: Reporter): string | undefined {
  if (node.type === "concatenated_string") {
    const pieces = parts(node).map((n) => string(n, reporter));
    return pieces.includes(undefined) ? undefined : pieces.join("");
  }
  const prefix = (node.namedChildren[0]?.text ?? "").replace(/["']+$/, "").toLowerCase();
  if (prefix !== "" && prefix !== "r") {
    reporter.unsupported(
      node,
      `a string with prefix ${prefix} is outside the subset`,
      'accepted: plain strings, "text"',
    );
    return undefined;
  }
  const content = node.namedChildren.filter((n) => n.type === "string_content").map((n) => n.text).join("");
  if (prefix === "r") return content;
  return content.replace(/\\(?:\r?\n|[^])/g, (escape) => {
    if (escape.endsWith("\n")) return "";
    return ESCAPES[escape] ?? escape;
  });
}

function call(node: Node, reporter: Reporter): Expression | undefined {
  const callee = node.childForFieldName("function");
  const list = node.childForFieldName("arguments");
  if (!callee || !list) return undefined;
  if (list.type !== "argument_list") {
    reporter.unsupported(
      list,
      "a generator as argument is outside the subset",
      "write a list comprehension, [...]",
    );
    return undefined;
  }
  const positional: Expression[] = [];
  const keywords: Keyword[] = [];
  for (const argument of parts(list)) {
    const span = spanOf(argument);
    const name = argument.childForFieldName("name");
    const value = argument.childForFieldName("value");
    if (argument.isError) continue;
    if (argument.type === "list_splat" || argument.type === "dictionary_splat") {
      reporter.unsupported(argument, "unpacked arguments are outside the subset", "write the arguments out");
    } else if (argument.type !== "keyword_argument") {
      if (keywords.length > 0) reporter.unsupported(argument, "a positional argument follows a named one");
      positional.push(lowerExpression(argument, reporter));
    } else if (name && value) {
      if (keywords.some((k) => k.name === name.text)) {
        reporter.unsupported(argument, `argument ${name.text} is given twice`);
      }
      keywords.push({ name: name.text, value: lowerExpression(value, reporter), span });
    }
  }
  return {
    kind: "call",
    callee: lowerExpression(callee, reporter),
    positional,
    keywords,
    span: spanOf(node),
  };
}

function comprehension(node: Node, reporter: Reporter): Expression | undefined {
  const body = node.childForFieldName("body");
  const clauses = parts(node).filter((n) => n.type === "for_in_clause");
  const [clause] = clauses;
  const left = clause?.childForFieldName("left");
  const right = clause?.childForFieldName("right");
  if (!body || !left || !right) return undefined;
  if (clauses.length > 1 || clause?.children.some((n) => n.type === "async")) {
    reporter.unsupported(
      clauses[1] ?? node,
      "one `for` a comprehension",
      "nest a second comprehension instead",
    );
  }
  const target = reporter.target(left);
  const iterable = lowerExpression(right, reporter);
  const conditions = parts(node).filter((n) => n.type === "if_clause")
    .flatMap((n) => parts(n)).map((n) => lowerExpression(n, reporter));
  const result = lowerExpression(body, reporter);
  if (!target) return undefined;
  return { kind: "comprehension", body: result, target, iterable, conditions, span: spanOf(node) };
}

function shorten(text: string): string {
  return text.length > 40 ? `${text.slice(0, 40)}...` : text;
}
