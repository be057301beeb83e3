/**
 * Evaluates a description symbolically: static values are computed, tensors are symbols whose ops are appended to a
 * graph. Nothing is executed: there is no input, no output, and no value but those of values.ts.
 *
 * An error is reported once and its value becomes `UNKNOWN`, which spreads in silence, so that one run reports every
 * independent error. The work is bounded: steps, depth and nodes have limits that no model comes near.
 */
import { readAttribute, readItem, readMethod } from "./attributes.ts";
import { BUILTINS } from "./builtins.ts";
import { type Argument, Arguments, bind, type CallSite, type Context, type Signature } from "./calls.ts";
import type { Span } from "./diagnostics.ts";
import { layerRule } from "./layers.ts";
import { binary, compare } from "./operators.ts";
import type {
  ClassDefinition,
  Expression,
  ExpressionOf,
  FunctionDefinition,
  Program,
  Statement,
  Target,
} from "./syntax.ts";
import type { Tracing } from "./tracing.ts";
import {
  type Callable,
  describe,
  isModule,
  isObject,
  isSequence,
  isUnknown,
  type Layer,
  LAYERS,
  type ModuleInstance,
  moduleType,
  type Tensor,
  text,
  truth,
  UNKNOWN,
  type Value,
} from "./values.ts";

/** Lists within lists in which modules are named. */
const DEEPEST_LIST = 4;

type Scope = Map<string, Value>;
/** What a block of statements came to: a returned value, or undefined when it ran to its end. */
type Outcome = { readonly value: Value } | undefined;
const GIVEN_UP: Outcome = { value: UNKNOWN };

export class Interpreter {
  readonly #globals: Scope = new Map();

  constructor(readonly program: Program, readonly tracing: Tracing) {
    for (const name of BUILTINS.keys()) this.#globals.set(name, { kind: "builtin", name });
    for (const layer of LAYERS) this.#globals.set(layer, { kind: "layer", layer });
    for (const definition of program.functions.values()) {
      this.#globals.set(definition.name, { kind: "function", definition });
    }
    for (const definition of program.classes.values()) {
      this.#globals.set(definition.name, { kind: "class", definition });
    }
    for (const { target, value } of program.constants) {
      this.#assign(target, this.#evaluate(value, new Map()), this.#globals);
    }
  }

  /** Makes the model: an instance of `definition` at the root, whose attribute paths are the tensor names. */
  construct(definition: ClassDefinition, config: Value): ModuleInstance {
    const root = newModule(definition);
    this.tracing.root = root;
    const span = definition.span;
    this.#initialise(root, definition, { positional: [{ value: config, span }], keywords: new Map(), span });
    return root;
  }

  /** Calls a method of a module with tensors; used for the root's forward. */
  forward(module: ModuleInstance, method: FunctionDefinition, tensors: readonly Tensor[]): Value {
    const span = method.span;
    return this.#callFunction(method, module, {
      positional: tensors.map((value) => ({ value, span })),
      keywords: new Map(),
      span,
    });
  }

  // Statements.

  #run(statements: readonly Statement[], scope: Scope): Outcome {
    for (const statement of statements) {
      const outcome = this.#execute(statement, scope);
      if (outcome) return outcome;
    }
    return undefined;
  }

  #execute(statement: Statement, scope: Scope): Outcome {
    this.tracing.at = statement.span;
    this.tracing.spend(1);
    switch (statement.kind) {
      case "expression":
        this.#evaluate(statement.value, scope);
        return undefined;
      case "assign":
        this.#assign(statement.target, this.#named(statement.target, statement.value, scope), scope);
        return undefined;
      case "return":
        return { value: statement.value ? this.#evaluate(statement.value, scope) : null };
      case "if": {
        for (const { condition, body } of statement.branches) {
          const met = this.#condition(condition, scope);
          if (met === undefined) return GIVEN_UP;
          if (met) return this.#run(body, scope);
        }
        return this.#run(statement.otherwise, scope);
      }
      case "for": {
        const items = this.tracing.items(this.#evaluate(statement.iterable, scope), statement.iterable.span);
        if (!items) return GIVEN_UP;
        for (const item of items) {
          this.#assign(statement.target, item, scope);
          const outcome = this.#run(statement.body, scope);
          if (outcome) return outcome;
        }
        return undefined;
      }
      case "assert":
        this.#assert(statement, scope);
        return undefined;
    }
  }

  /** Every failed assertion is reported; tracing goes on, since the graph will not be used. */
  #assert(statement: Extract<Statement, { readonly kind: "assert" }>, scope: Scope): void {
    this.tracing.fieldsRead = new Map();
    if (this.#condition(statement.condition, scope) !== false) return;
    const read = [...this.tracing.fieldsRead].map(([name, json]) => `${name} = ${text(json)}`);
    const message = statement.message ? this.#evaluate(statement.message, scope) : null;
    const notes = read.length > 0 ? [`config.json has ${read.join(", ")}`] : [];
    this.tracing.fail(
      statement.span,
      typeof message === "string" ? message : "this assertion does not hold",
      ...notes,
    );
  }

  /** A condition's truth, or undefined when it has none that is static, which is reported. */
  #condition(expression: Expression, scope: Scope): boolean | undefined {
    return this.#truth(this.#evaluate(expression, scope), expression.span);
  }

  #truth(value: Value, span: Span): boolean | undefined {
    const known = truth(value);
    if (known === undefined && !isUnknown(value)) {
      this.tracing.fail(
        span,
        `a condition must be known when the model is compiled, found ${describe(value)}`,
      );
    }
    return known;
  }

  /** Evaluates with the target's name as hint for the values of the graph: `q, k = f(x), g(x)` names both. */
  #named(target: Target, expression: Expression, scope: Scope): Value {
    if (target.kind === "targets" && expression.kind === "tuple") {
      const items = expression.items.map((item, i) => {
        const own = target.items[i];
        return own ? this.#named(own, item, scope) : this.#evaluate(item, scope);
      });
      return { kind: "tuple", items };
    }
    if (target.kind !== "name") return this.#evaluate(expression, scope);
    const outer = this.tracing.hint;
    this.tracing.hint = target.name;
    const value = this.#evaluate(expression, scope);
    this.tracing.hint = outer;
    return value;
  }

  #assign(target: Target, value: Value, scope: Scope): void {
    switch (target.kind) {
      case "name":
        scope.set(target.name, value);
        return;
      case "attribute": {
        const object = this.#evaluate(target.object, scope);
        if (isModule(object) && object.constructing) {
          object.attributes.set(target.name, value);
          this.#adopt(object, target.name, value);
        } else if (!isUnknown(object)) {
          const found = isModule(object)
            ? "an attribute set outside __init__"
            : `an attribute of ${describe(object)}`;
          this.tracing.fail(
            target.span,
            `cannot assign to ${found}`,
            "accepted: self.name = value, in __init__",
          );
        }
        return;
      }
      case "targets": {
        if (isUnknown(value)) {
          for (const item of target.items) this.#assign(item, UNKNOWN, scope);
          return;
        }
        const items = this.tracing.items(value, target.span);
        if (items && items.length !== target.items.length) {
          this.tracing.fail(target.span, `${target.items.length} names for ${items.length} values`);
        }
        const fits = items?.length === target.items.length;
        target.items.forEach((item, i) => this.#assign(item, fits ? items?.[i] ?? null : UNKNOWN, scope));
      }
    }
  }

  /** The first attribute that holds a module names it; items of lists by their index. */
  #adopt(owner: ModuleInstance, name: string, value: Value, depth = 0): void {
    if (isModule(value) && value.owner === undefined && value !== this.tracing.root) {
      value.owner = owner;
      value.name = name;
    } else if (isSequence(value) && depth < DEEPEST_LIST) {
      this.tracing.spend(value.items.length);
      value.items.forEach((item, i) => {
        if (isModule(item) || isSequence(item)) this.#adopt(owner, `${name}.${i}`, item, depth + 1);
      });
    }
  }

  // Expressions.

  #evaluate(expression: Expression, scope: Scope): Value {
    this.tracing.spend(1);
    return this.tracing.nested(expression.span, () => this.#evaluateKind(expression, scope));
  }

  #evaluateKind(expression: Expression, scope: Scope): Value {
    const { span } = expression;
    switch (expression.kind) {
      case "constant":
        return expression.value;
      case "name": {
        const value = scope.get(expression.name) ?? this.#globals.get(expression.name);
        if (value !== undefined || scope.has(expression.name)) return value ?? null;
        return this.tracing.fail(span, `${expression.name} is read before it has a value`);
      }
      case "list":
      case "tuple":
        return { kind: expression.kind, items: expression.items.map((item) => this.#evaluate(item, scope)) };
      case "attribute":
        return readAttribute(this.#evaluate(expression.object, scope), expression, this.tracing);
      case "subscript":
        return readItem(
          this.#evaluate(expression.object, scope),
          this.#evaluate(expression.index, scope),
          expression,
          this.tracing,
        );
      case "call":
        return this.#call(expression, scope);
      case "comprehension":
        return this.#comprehension(expression, scope);
      case "negate": {
        const value = this.#evaluate(expression.operand, scope);
        if (typeof value === "number") return -value;
        return isUnknown(value) ? UNKNOWN : this.tracing.fail(span, `cannot negate ${describe(value)}`);
      }
      case "not": {
        const met = this.#condition(expression.operand, scope);
        return met === undefined ? UNKNOWN : !met;
      }
      case "binary": {
        const left = this.#evaluate(expression.left, scope);
        const right = this.#evaluate(expression.right, scope);
        return binary(expression.operator, left, right, span, this.tracing);
      }
      case "boolean": {
        const left = this.#evaluate(expression.left, scope);
        const met = this.#truth(left, expression.left.span);
        if (met === undefined) return UNKNOWN;
        return met === (expression.operator === "or") ? left : this.#evaluate(expression.right, scope);
      }
      case "comparison":
        return this.#comparison(expression, scope);
      case "conditional": {
        const met = this.#condition(expression.condition, scope);
        if (met === undefined) return UNKNOWN;
        return this.#evaluate(met ? expression.then : expression.otherwise, scope);
      }
      case "invalid":
        return UNKNOWN;
    }
  }

  #comparison({ operands, operators, span }: ExpressionOf<"comparison">, scope: Scope): Value {
    let [left, ...rest] = operands.map((operand) => this.#evaluate(operand, scope));
    for (const [i, right] of rest.entries()) {
      const operator = operators[i];
      if (left === undefined || operator === undefined) return UNKNOWN;
      const met = compare(operator, left, right, span, this.tracing);
      if (met !== true) return met;
      left = right;
    }
    return true;
  }

  #comprehension(expression: ExpressionOf<"comprehension">, scope: Scope): Value {
    const items = this.tracing.items(this.#evaluate(expression.iterable, scope), expression.iterable.span);
    if (!items) return UNKNOWN;
    const inner: Scope = new Map(scope);
    const made: Value[] = [];
    for (const item of items) {
      this.#assign(expression.target, item, inner);
      const kept = expression.conditions.every((condition) => this.#condition(condition, inner) === true);
      if (kept) made.push(this.#evaluate(expression.body, inner));
    }
    return { kind: "list", items: made };
  }

  // Calls.

  #call(expression: ExpressionOf<"call">, scope: Scope): Value {
    if (isSuperInit(expression)) return null;
    const callee = this.#evaluate(expression.callee, scope);
    const argument = (value: Expression, span: Span): Argument => ({
      value: this.#evaluate(value, scope),
      span,
    });
    const site: CallSite = {
      positional: expression.positional.map((value) => argument(value, value.span)),
      keywords: new Map(expression.keywords.map((k) => [k.name, argument(k.value, k.span)])),
      span: expression.span,
    };
    if (isUnknown(callee)) return UNKNOWN;
    if (isModule(callee)) {
      const forward = readMethod(callee, "forward", expression.callee.span, this.tracing);
      return isObject(forward) && isCallable(forward) ? this.#invoke(forward, site) : UNKNOWN;
    }
    if (isObject(callee) && isCallable(callee)) return this.#invoke(callee, site);
    return this.tracing.fail(expression.callee.span, `${describe(callee)} cannot be called`);
  }

  #invoke(callee: Callable, site: CallSite): Value {
    switch (callee.kind) {
      case "function":
        return this.#callFunction(callee.definition, callee.self, site);
      case "class": {
        const module = newModule(callee.definition);
        this.#initialise(module, callee.definition, site);
        return module;
      }
      case "builtin": {
        const builtin = BUILTINS.get(callee.name);
        return builtin ? this.#callBuiltin(builtin.signature, site, builtin.call) : UNKNOWN;
      }
      case "layer": {
        const rule = layerRule(callee.layer);
        return this.#callBuiltin(rule.constructor, site, (found) => {
          const attributes = rule.construct(found);
          return found.unlessFailed(() => ({ ...newModule(callee.layer), attributes: new Map(attributes) }));
        });
      }
      case "layer_method": {
        const { self } = callee;
        const method = typeof self.type === "string"
          ? layerRule(self.type).methods.get(callee.name)
          : undefined;
        if (!method) return UNKNOWN;
        return this.#callBuiltin(method.signature, site, (found) => method.call(self, found, this.tracing));
      }
    }
  }

  #callBuiltin(
    signature: Signature,
    site: CallSite,
    call: (found: Arguments, context: Context) => Value,
  ): Value {
    const bound = bind(signature, site, this.tracing);
    return bound ? call(new Arguments(signature, bound, site.span, this.tracing), this.tracing) : UNKNOWN;
  }

  #initialise(module: ModuleInstance, definition: ClassDefinition, site: CallSite): void {
    const init = definition.methods.get("__init__");
    module.constructing = true;
    if (init) {
      module.incomplete = isUnknown(this.#callFunction(init, module, site));
    } else {
      bind({ name: definition.name, parameters: [] }, site, this.tracing);
    }
    module.constructing = false;
  }

  #callFunction(definition: FunctionDefinition, self: ModuleInstance | undefined, site: CallSite): Value {
    const parameters = self ? definition.parameters.slice(1) : definition.parameters;
    const name = self ? `${moduleType(self)}.${definition.name}` : definition.name;
    const signature = {
      name,
      parameters: parameters.map((p) => ({
        name: p.name,
        optional: p.default !== null,
        keywordOnly: p.keywordOnly,
      })),
    };
    const bound = bind(signature, site, this.tracing);
    if (!bound) return UNKNOWN;
    const scope: Scope = new Map();
    const own = definition.parameters[0];
    if (self && own) scope.set(own.name, self);
    for (const parameter of parameters) {
      const given = bound.get(parameter.name);
      const value = given
        ? given.value
        : parameter.default
        ? this.#evaluate(parameter.default, new Map())
        : UNKNOWN;
      scope.set(parameter.name, value);
    }
    if (self) this.tracing.running.push(self);
    const outcome = this.#run(definition.body, scope);
    if (self) this.tracing.running.pop();
    return outcome ? outcome.value : null;
  }
}

function newModule(type: ClassDefinition | Layer): ModuleInstance {
  return { kind: "module", type, attributes: new Map(), constructing: false, incomplete: false };
}

function isCallable(value: Exclude<Value, number | string | boolean | null>): value is Callable {
  return ["function", "class", "builtin", "layer", "layer_method"].includes(value.kind);
}

/** `super().__init__()`, which PyTorch needs and which does nothing here. */
function isSuperInit({ callee }: ExpressionOf<"call">): boolean {
  return callee.kind === "attribute" && callee.name === "__init__" && callee.object.kind === "call" &&
    callee.object.callee.kind === "name" && callee.object.callee.name === "super";
}
