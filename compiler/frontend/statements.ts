/** Statements, functions and classes of the subset: a rule for each kind of node of tree-sitter's grammar in it. */
import type { Node } from "web-tree-sitter";
import { condition, expression, target } from "./expressions.ts";
import { described, fields, isDocumentation, isPattern, parts, targetsIn } from "./nodes.ts";
import { Reported } from "./tracing.ts";
import { INSTEAD, type Unit } from "./unit.ts";
import {
  type Callable,
  type Evaluate,
  type Execute,
  type ModuleInstance,
  type ModuleType,
  type Parameter,
  type Scope,
  text,
  UNKNOWN,
} from "./values.ts";

/** Undefined for what does nothing, or was reported. */
type Rule = (node: Node, unit: Unit) => Execute | undefined;

const ACCEPTED = "accepted: assignments, calls, if, for, assert and return";

const RULES: Readonly<Record<string, Rule>> = {
  expression_statement: simple,
  return_statement(node, unit) {
    const [value] = parts(node);
    if (!value) return () => ({ value: null });
    const evaluate = expression(value, unit);
    return (scope) => ({ value: evaluate(scope) });
  },
  if_statement: conditional,
  for_statement: loop,
  assert_statement: assertion,
  pass_statement: () => undefined,
};

/**
 * Compiles a statement, and reports what of it is outside the subset. One that is given up leaves unknown what it
 * assigns, so that tracing can go on; not one that may return, as it is not known what would run after it.
 */
export function statement(node: Node, unit: Unit): Execute | undefined {
  const rule = RULES[node.type];
  const run = rule ? rule(node, unit) : unit.outside(node, ACCEPTED);
  if (!run) return undefined;
  const { tracing } = unit;
  const span = unit.span(node);
  const targets = targetsIn(node).map((left) => target(left, unit));
  const returns = node.descendantsOfType("return_statement").length > 0;
  return (scope) => {
    tracing.at = span;
    tracing.spend(1);
    const outcome = tracing.attempt(() => run(scope));
    if (outcome) return outcome.value;
    for (const assign of targets) tracing.attempt(() => assign(UNKNOWN, scope));
    if (returns) throw new Reported();
    return undefined;
  };
}

/** Whether no statement of this kind is in the subset, wherever it stands. */
export function isOutside(node: Node): boolean {
  return RULES[node.type] === undefined;
}

function block(node: Node | undefined, unit: Unit): Execute {
  const compile = () => node ? parts(node).flatMap((n) => n.isError ? [] : statement(n, unit) ?? []) : [];
  const statements = (node ? unit.nested(node, compile) : undefined) ?? [];
  return (scope) => {
    for (const run of statements) {
      const outcome = run(scope);
      if (outcome) return outcome;
    }
    return undefined;
  };
}

function simple(node: Node, unit: Unit): Execute | undefined {
  const [inner] = parts(node);
  if (!inner || isDocumentation(node)) return undefined;
  const { left, operator, right } = fields(inner);
  if (inner.type === "augmented_assignment") {
    const fix = `write ${left?.text} = ${left?.text} ${operator?.text.slice(0, -1)} ...`;
    return unit.unsupported(inner, `${operator?.text} is outside the subset`, fix);
  }
  if (inner.type !== "assignment") {
    const evaluate = expression(inner, unit);
    return (scope) => void evaluate(scope);
  }
  if (right?.type === "assignment") {
    return unit.unsupported(inner, "one assignment a statement", "write each on a line of its own");
  }
  if (!left || !right) return undefined;
  const evaluate = named(left, right, unit);
  const assign = target(left, unit);
  return (scope) => void assign(evaluate(scope), scope);
}

/** With the target's name for the values of the graph: `q, k = f(x), g(x)` names both. */
function named(left: Node, right: Node, unit: Unit): Evaluate {
  if (isPattern(left) && (right.type === "expression_list" || right.type === "tuple")) {
    const own = parts(left);
    const items = parts(right).map((item, i) => {
      const name = own[i];
      return name ? named(name, item, unit) : expression(item, unit);
    });
    return (scope) => items.map((item) => item(scope));
  }
  const evaluate = expression(right, unit);
  if (left.type !== "identifier") return evaluate;
  const hint = left.text;
  return (scope) => unit.tracing.named(hint, () => evaluate(scope));
}

function conditional(node: Node, unit: Unit): Execute {
  const branch = (part: Node) => {
    const { condition: test, consequence } = fields(part);
    return { met: condition(test, unit), run: block(consequence, unit) };
  };
  const alternatives = node.childrenForFieldName("alternative");
  const branches = [node, ...alternatives.filter((n) => n.type === "elif_clause")].map(branch);
  const last = alternatives.find((n) => n.type === "else_clause");
  const otherwise = block(last && fields(last).body, unit);
  return (scope) => {
    const branch = branches.find(({ met }) => met(scope));
    return branch ? branch.run(scope) : otherwise(scope);
  };
}

function loop(node: Node, unit: Unit): Execute | undefined {
  const { left, right, body, alternative: otherwise } = fields(node);
  if (otherwise) unit.unsupported(otherwise, "a loop has no else", "write the statements after the loop");
  if (!left || !right) return undefined;
  const assign = target(left, unit);
  const [iterable, run] = [expression(right, unit), block(body, unit)];
  const span = unit.span(right);
  return (scope) => {
    for (const item of unit.tracing.items(iterable(scope), span)) {
      assign(item, scope);
      const outcome = run(scope);
      if (outcome) return outcome;
    }
    return undefined;
  };
}

/** Every failed assertion is reported; tracing goes on, since the graph will not be used. */
function assertion(node: Node, unit: Unit): Execute {
  const [test, reason] = parts(node);
  const met = condition(test, unit);
  const message = reason && expression(reason, unit);
  const { tracing } = unit;
  const span = unit.span(node);
  return (scope) => {
    tracing.fieldsRead = new Map();
    if (met(scope)) return undefined;
    const read = [...tracing.fieldsRead].map(([name, json]) => `${name} = ${text(json)}`);
    const said = message?.(scope);
    const notes = read.length > 0 ? [`config.json has ${read.join(", ")}`] : [];
    return tracing.fail(span, typeof said === "string" ? said : "this assertion does not hold", ...notes);
  };
}

/** A function that is compiled: `bind` makes what can be called, of a method with its self. */
export interface Definition {
  readonly name: Node;
  readonly parameters: readonly Parameter[];
  readonly bind: (self?: ModuleInstance) => Callable;
}

/** `def`, with the name of its class where it is a method. */
export function functionDefinition(node: Node, unit: Unit, owner?: string): Definition {
  const { name = node, parameters: list, body } = fields(node);
  const [first] = node.children;
  if (first?.type === "async") unit.unsupported(first, "functions are not async", "accepted: def");
  const { parameters, defaults } = parametersOf(list, unit);
  const own = parameters[0]?.name;
  const locals = [...parameters.map((p) => p.name), ...targetsIn(node).map((n) => n.text)];
  const run = unit.withLocals(locals, () => block(body, unit));
  const text = owner ? `${owner}.${name.text}` : name.text;
  const bind = (self?: ModuleInstance): Callable => ({
    kind: "function",
    name: text,
    parameters: parameters.slice(self ? 1 : 0),
    span: unit.span(name),
    call({ bound, tracing }) {
      const scope: Scope = new Map();
      for (const [name, { value }] of bound) scope.set(name, value);
      for (const [name, initial] of defaults) if (!bound.has(name)) scope.set(name, initial(new Map()));
      if (self && own !== undefined) scope.set(own, self);
      return tracing.inside(self, () => run(scope)?.value ?? null);
    },
  });
  return { name, parameters, bind };
}

function parametersOf(list: Node | undefined, unit: Unit) {
  const parameters: Parameter[] = [];
  const defaults = new Map<string, Evaluate>();
  let keywordOnly = false;
  for (const node of list ? parts(list).filter((n) => !n.isError) : []) {
    // An annotation says to a reader what a value is; it has no meaning here.
    const { name: inner, value } = fields(node);
    const nameNode = inner ?? (node.type === "typed_parameter" ? node.namedChildren[0] : node);
    if (node.type === "keyword_separator") {
      keywordOnly = true;
    } else if (nameNode?.type === "identifier") {
      const name = nameNode.text;
      if (parameters.some((p) => p.name === name)) unit.report(node, `parameter ${name} appears twice`);
      if (value) defaults.set(name, expression(value, unit));
      parameters.push({ name, optional: value !== undefined, keywordOnly });
    } else {
      unit.unsupported(
        node,
        `parameter ${node.text} is outside the subset`,
        "accepted: name, or name=default",
      );
    }
  }
  return { parameters, defaults };
}

export function classDefinition(node: Node, unit: Unit): ModuleType {
  const { name: nameNode = node, superclasses: bases, body } = fields(node);
  const name = nameNode.text;
  const base = bases ? parts(bases) : [];
  if (!node.hasError && (base.length !== 1 || base[0]?.text !== "Module")) {
    const message = `class ${name} must derive from Module and nothing else`;
    unit.unsupported(bases ?? nameNode, message, `accepted: class ${name}(Module):`);
  }
  const members = body ? parts(body).filter((n) => !n.isError) : [];
  const methods = new Map<string, Definition["bind"]>();
  for (const member of members) {
    if (isDocumentation(member) || member.type === "pass_statement") continue;
    if (member.type === "function_definition") {
      const { name: at, parameters, bind } = functionDefinition(member, unit, name);
      if (methods.has(at.text)) unit.misplaced(at, `class ${name} defines ${at.text} twice`);
      if (parameters.length === 0 && !member.hasError) {
        unit.report(at, `method ${at.text} has no self`, `accepted: def ${at.text}(self):`);
      }
      methods.set(at.text, bind);
    } else if (INSTEAD[member.type] !== undefined) {
      unit.outside(member, ACCEPTED);
    } else {
      const accepted = "accepted: methods (def); attributes are set on self in __init__";
      unit.misplaced(member, `${described(member)} cannot stand in a class body`, accepted);
    }
  }
  return { kind: "class", name, methods, span: unit.span(nameNode) };
}
