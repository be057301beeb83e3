/**
 * The subset of Python a model description is written in, as a syntax tree of our own: `lower.ts` makes it from
 * tree-sitter's tree, and everything after reads only this. What has no kind here is not in the subset.
 */
import type { Span } from "./diagnostics.ts";

export type BinaryOperator = "+" | "-" | "*" | "/" | "//" | "%" | "**";
export type ComparisonOperator = "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not in" | "is" | "is not";

interface Kinds {
  readonly constant: { readonly value: number | string | boolean | null };
  readonly name: { readonly name: string };
  readonly attribute: { readonly object: Expression; readonly name: string; readonly nameSpan: Span };
  readonly subscript: { readonly object: Expression; readonly index: Expression };
  readonly call: {
    readonly callee: Expression;
    readonly positional: readonly Expression[];
    readonly keywords: readonly Keyword[];
  };
  readonly list: { readonly items: readonly Expression[] };
  readonly tuple: { readonly items: readonly Expression[] };
  /** `[body for target in iterable if condition]`, one loop. */
  readonly comprehension: {
    readonly body: Expression;
    readonly target: Target;
    readonly iterable: Expression;
    readonly conditions: readonly Expression[];
  };
  readonly negate: { readonly operand: Expression };
  readonly not: { readonly operand: Expression };
  readonly binary: {
    readonly operator: BinaryOperator;
    readonly left: Expression;
    readonly right: Expression;
  };
  readonly boolean: {
    readonly operator: "and" | "or";
    readonly left: Expression;
    readonly right: Expression;
  };
  /** `a < b <= c`: each operand is compared with the next. */
  readonly comparison: {
    readonly operands: readonly Expression[];
    readonly operators: readonly ComparisonOperator[];
  };
  readonly conditional: {
    readonly condition: Expression;
    readonly then: Expression;
    readonly otherwise: Expression;
  };
  /** Stands where something outside the subset was reported, so that the rest is checked too. Never evaluated. */
  readonly invalid: Record<never, never>;
}

type Tagged<K> = { [P in keyof K]: { readonly kind: P; readonly span: Span } & K[P] }[keyof K];

export type Expression = Tagged<Kinds>;
export type ExpressionOf<P extends keyof Kinds> = Extract<Expression, { readonly kind: P }>;

export interface Keyword {
  readonly name: string;
  readonly value: Expression;
  readonly span: Span;
}

/** What can be assigned to: a name, an attribute of self, or several of them. */
export type Target =
  | ExpressionOf<"name">
  | ExpressionOf<"attribute">
  | { readonly kind: "targets"; readonly items: readonly Target[]; readonly span: Span };

export type Statement =
  | { readonly kind: "assign"; readonly target: Target; readonly value: Expression; readonly span: Span }
  | { readonly kind: "expression"; readonly value: Expression; readonly span: Span }
  | { readonly kind: "return"; readonly value: Expression | null; readonly span: Span }
  | {
    readonly kind: "if";
    readonly branches: readonly Branch[];
    readonly otherwise: readonly Statement[];
    readonly span: Span;
  }
  | {
    readonly kind: "for";
    readonly target: Target;
    readonly iterable: Expression;
    readonly body: readonly Statement[];
    readonly span: Span;
  }
  | {
    readonly kind: "assert";
    readonly condition: Expression;
    readonly message: Expression | null;
    readonly span: Span;
  };

export interface Branch {
  readonly condition: Expression;
  readonly body: readonly Statement[];
}

export interface Parameter {
  readonly name: string;
  readonly default: Expression | null;
  readonly keywordOnly: boolean;
  readonly span: Span;
}

export interface FunctionDefinition {
  readonly name: string;
  readonly parameters: readonly Parameter[];
  readonly body: readonly Statement[];
  /** The name and parameters: where a diagnostic about the function points. */
  readonly span: Span;
}

export interface ClassDefinition {
  readonly name: string;
  readonly methods: ReadonlyMap<string, FunctionDefinition>;
  readonly span: Span;
}

/** A whole file: names in order of definition. */
export interface Program {
  readonly classes: ReadonlyMap<string, ClassDefinition>;
  readonly functions: ReadonlyMap<string, FunctionDefinition>;
  readonly constants: readonly Extract<Statement, { readonly kind: "assign" }>[];
}

/** The names a target binds: `a, (b, c)` binds three; attributes bind none. */
export function boundNames(target: Target): string[] {
  switch (target.kind) {
    case "name":
      return [target.name];
    case "attribute":
      return [];
    case "targets":
      return target.items.flatMap(boundNames);
  }
}

/** A dotted name as written, `self.model.norm`, or undefined when the expression is something else. */
export function dottedName(expression: Expression): string | undefined {
  if (expression.kind === "name") return expression.name;
  if (expression.kind !== "attribute") return undefined;
  const object = dottedName(expression.object);
  return object === undefined ? undefined : `${object}.${expression.name}`;
}
