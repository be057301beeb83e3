/**
 * Names, checked over the whole file before anything is traced: every name that is read is bound somewhere, and
 * every attribute of self is set or defined by its class.
 */
import { BUILTINS } from "./builtins.ts";
import { type Diagnostics, didYouMean } from "./diagnostics.ts";
import {
  boundNames,
  type ClassDefinition,
  type Expression,
  type FunctionDefinition,
  type Program,
  type Statement,
  type Target,
} from "./syntax.ts";
import { LAYERS } from "./values.ts";

export function checkNames(program: Program, diagnostics: Diagnostics): void {
  const globals = new Set<string>([
    ...BUILTINS.keys(),
    ...LAYERS,
    "super",
    ...program.classes.keys(),
    ...program.functions.keys(),
    ...program.constants.flatMap((c) => boundNames(c.target)),
  ]);
  for (const { value } of program.constants) new NameCheck(globals, undefined, diagnostics).expression(value);
  for (const definition of program.functions.values()) {
    new NameCheck(globals, undefined, diagnostics).function(definition);
  }
  for (const definition of program.classes.values()) {
    const attributes = attributesOf(definition);
    for (const method of definition.methods.values()) {
      const own = method.parameters[0]?.name;
      const self = own === undefined ? undefined : { name: own, attributes, type: definition.name };
      new NameCheck(globals, self, diagnostics).function(method);
    }
  }
}

interface Self {
  readonly name: string;
  readonly attributes: ReadonlySet<string>;
  readonly type: string;
}

class NameCheck {
  #locals = new Set<string>();

  constructor(
    readonly globals: ReadonlySet<string>,
    readonly self: Self | undefined,
    readonly diagnostics: Diagnostics,
  ) {}

  function({ parameters, body }: FunctionDefinition): void {
    for (const parameter of parameters) if (parameter.default) this.expression(parameter.default);
    this.#locals = new Set(parameters.map((p) => p.name));
    for (const target of targets(body)) for (const name of boundNames(target)) this.#locals.add(name);
    this.#block(body);
  }

  expression(expression: Expression): void {
    switch (expression.kind) {
      case "constant":
      case "invalid":
        return;
      case "name": {
        const known = [...this.#locals, ...this.globals];
        if (known.includes(expression.name)) return;
        this.diagnostics.report(
          expression.span,
          `${expression.name} is not defined${didYouMean(expression.name, known)}`,
          ...(expression.name === "torch" || expression.name === "nn"
            ? ["layers are built in: write Linear, not nn.Linear"]
            : []),
        );
        return;
      }
      case "attribute": {
        this.expression(expression.object);
        const { object, name } = expression;
        if (object.kind !== "name" || object.name !== this.self?.name || this.self.attributes.has(name)) {
          return;
        }
        this.diagnostics.report(
          expression.nameSpan,
          `${this.self.type} has no attribute ${name}${didYouMean(name, this.self.attributes)}`,
          `attributes are set in __init__: self.${name} = ...`,
        );
        return;
      }
      case "comprehension": {
        this.expression(expression.iterable);
        const outer = this.#locals;
        this.#locals = new Set([...outer, ...boundNames(expression.target)]);
        expression.conditions.forEach((c) => this.expression(c));
        this.expression(expression.body);
        this.#locals = outer;
        return;
      }
      default:
        children(expression).forEach((child) => this.expression(child));
    }
  }

  #block(statements: readonly Statement[]): void {
    for (const statement of statements) {
      switch (statement.kind) {
        case "assign":
        case "expression":
          this.expression(statement.value);
          break;
        case "return":
          if (statement.value) this.expression(statement.value);
          break;
        case "if":
          for (const { condition, body } of statement.branches) {
            this.expression(condition);
            this.#block(body);
          }
          this.#block(statement.otherwise);
          break;
        case "for":
          this.expression(statement.iterable);
          this.#block(statement.body);
          break;
        case "assert":
          this.expression(statement.condition);
          if (statement.message) this.expression(statement.message);
      }
    }
  }
}

type Simple = Exclude<
  Expression,
  { readonly kind: "constant" | "invalid" | "name" | "attribute" | "comprehension" }
>;

function children(expression: Simple): readonly Expression[] {
  switch (expression.kind) {
    case "subscript":
      return [expression.object, expression.index];
    case "call":
      return [expression.callee, ...expression.positional, ...expression.keywords.map((k) => k.value)];
    case "list":
    case "tuple":
      return expression.items;
    case "negate":
    case "not":
      return [expression.operand];
    case "binary":
    case "boolean":
      return [expression.left, expression.right];
    case "comparison":
      return expression.operands;
    case "conditional":
      return [expression.condition, expression.then, expression.otherwise];
  }
}

/** Everything a block assigns to, in blocks inside it too. */
function targets(statements: readonly Statement[]): Target[] {
  return statements.flatMap((statement): Target[] => {
    switch (statement.kind) {
      case "assign":
        return [statement.target];
      case "for":
        return [statement.target, ...targets(statement.body)];
      case "if":
        return [...statement.branches.flatMap((b) => targets(b.body)), ...targets(statement.otherwise)];
      default:
        return [];
    }
  });
}

/** Methods, and what any method assigns to an attribute of its self. */
function attributesOf(definition: ClassDefinition): Set<string> {
  const attributes = new Set(definition.methods.keys());
  const add = (target: Target, self: string | undefined): void => {
    if (target.kind === "targets") target.items.forEach((item) => add(item, self));
    else if (target.kind === "attribute" && target.object.kind === "name" && target.object.name === self) {
      attributes.add(target.name);
    }
  };
  for (const method of definition.methods.values()) {
    for (const target of targets(method.body)) add(target, method.parameters[0]?.name);
  }
  return attributes;
}
