/**
 * tree-sitter's tree of a file to the syntax tree of the subset (syntax.ts). This is the static check: it visits the
 * whole file and reports every construct outside the subset with what would be accepted in its place. Parts with
 * syntax errors are passed over in silence; syntax_errors.ts reports those.
 */
import type { Node, Tree } from "web-tree-sitter";
import type { Diagnostics, Span } from "./diagnostics.ts";
import { lowerExpression, type Reporter } from "./lower_expressions.ts";
import { described, parts, spanOf } from "./nodes.ts";
import type {
  Branch,
  ClassDefinition,
  Expression,
  FunctionDefinition,
  Parameter,
  Program,
  Statement,
  Target,
} from "./syntax.ts";

/** Deeper nesting is no model description, and would exhaust the stack of everything that walks the tree. */
const DEEPEST = 64;

const INSTEAD: Readonly<Record<string, string>> = {
  import_statement: "everything a description may use is built in; remove the import",
  import_from_statement: "everything a description may use is built in; remove the import",
  future_import_statement: "everything a description may use is built in; remove the import",
  while_statement: "loop with `for` over a range or a list",
  try_statement: 'check with `if`, or state a requirement with `assert condition, "message"`',
  raise_statement: 'state a requirement with `assert condition, "message"`',
  with_statement: "write its statements without `with`",
  match_statement: "use `if`, `elif` and `else`",
  break_statement: "choose what the loop runs over, or use `if`",
  continue_statement: "use `if` inside the loop",
  decorated_definition: "write the definition without decorators",
  global_statement: "pass values as arguments",
  nonlocal_statement: "pass values as arguments",
  delete_statement: "leave the name unused",
  yield: "return a value or a list",
};

/**
 * The part of a file that parsed, in the subset; everything else is in `diagnostics`. `broken`: the file has syntax
 * errors, so that parts may stand in blocks they do not belong to.
 */
export function lower(tree: Tree, diagnostics: Diagnostics, broken: boolean): Program {
  return new Lowering(diagnostics, broken).program(tree.rootNode);
}

class Lowering implements Reporter {
  #depth = 0;

  constructor(readonly diagnostics: Diagnostics, readonly broken: boolean) {}

  program(root: Node): Program {
    const classes = new Map<string, ClassDefinition>();
    const functions = new Map<string, FunctionDefinition>();
    const constants: Program["constants"][number][] = [];
    const names = new Set<string>();
    const define = (name: string, span: Span) => {
      if (names.has(name) && !this.broken) {
        this.diagnostics.report(span, `${name} is defined twice in this file`);
      }
      names.add(name);
    };
    for (const node of parts(root)) {
      if (node.isError) continue;
      if (node.type === "class_definition") {
        const definition = this.#class(node);
        define(definition.name, definition.span);
        classes.set(definition.name, definition);
      } else if (node.type === "function_definition") {
        const definition = this.#function(node);
        define(definition.name, definition.span);
        functions.set(definition.name, definition);
      } else {
        for (const statement of this.#statement(node)) {
          if (statement.kind === "assign" && statement.target.kind === "name") {
            define(statement.target.name, statement.span);
            constants.push(statement);
          } else if (!this.broken) {
            this.diagnostics.report(
              statement.span,
              "this statement cannot stand outside a class or function",
              "accepted: class X(Module), def, and constants (`NAME = value`)",
            );
          }
        }
      }
    }
    return { classes, functions, constants };
  }

  unsupported(node: Node, what: string, ...notes: string[]): void {
    const doubtful = this.broken && (node.hasError || this.diagnostics.hasOnRow(node.startPosition.row));
    if (!doubtful) this.diagnostics.report(spanOf(node), what, ...notes);
  }

  /** Runs `visit` one level deeper; `otherwise` stands for a level too many. */
  nested<R>(node: Node, visit: () => R, otherwise: R): R {
    if (this.#depth >= DEEPEST) {
      this.diagnostics.report(
        spanOf(node),
        `nested more than ${DEEPEST} levels deep`,
        "give inner parts names",
      );
      return otherwise;
    }
    this.#depth++;
    try {
      return visit();
    } finally {
      this.#depth--;
    }
  }

  #class(node: Node): ClassDefinition {
    const nameNode = node.childForFieldName("name");
    const name = nameNode?.text ?? "";
    const bases = node.childForFieldName("superclasses");
    const base = bases ? parts(bases) : [];
    if (!node.hasError && (base.length !== 1 || base[0]?.text !== "Module")) {
      this.unsupported(
        bases ?? nameNode ?? node,
        `class ${name} must derive from Module and nothing else`,
        `accepted: class ${name}(Module):`,
      );
    }
    const methods = new Map<string, FunctionDefinition>();
    const body = node.childForFieldName("body");
    for (const member of body ? parts(body) : []) {
      if (member.isError || isDocumentation(member) || member.type === "pass_statement") continue;
      if (member.type !== "function_definition") {
        const note = INSTEAD[member.type];
        if (note !== undefined) this.unsupported(member, `${described(member)} is outside the subset`, note);
        else if (!this.broken) {
          const accepted = "accepted: methods (def); attributes are set on self in __init__";
          this.unsupported(member, `${described(member)} cannot stand in a class body`, accepted);
        }
        continue;
      }
      const method = this.#function(member);
      if (methods.has(method.name) && !this.broken) {
        this.diagnostics.report(method.span, `class ${name} defines ${method.name} twice`);
      }
      if (method.parameters.length === 0 && !member.hasError) {
        this.diagnostics.report(
          method.span,
          `method ${method.name} has no self`,
          `accepted: def ${method.name}(self):`,
        );
      }
      methods.set(method.name, method);
    }
    return { name, methods, span: spanOf(nameNode ?? node) };
  }

  #function(node: Node): FunctionDefinition {
    const nameNode = node.childForFieldName("name");
    const list = node.childForFieldName("parameters");
    if (node.children[0]?.type === "async") {
      this.unsupported(node.children[0], "functions are not async", "accepted: def");
    }
    const body = node.childForFieldName("body");
    const start = spanOf(nameNode ?? node);
    return {
      name: nameNode?.text ?? "",
      parameters: list ? this.#parameters(list) : [],
      body: body ? this.#block(body) : [],
      span: start,
    };
  }

  #parameters(list: Node): Parameter[] {
    const parameters: Parameter[] = [];
    let keywordOnly = false;
    for (const node of parts(list)) {
      if (node.isError) continue;
      const span = spanOf(node);
      // An annotation says to a reader what a value is; it has no meaning here.
      const value = node.childForFieldName("value");
      const fallback = value ? lowerExpression(value, this) : null;
      const nameNode = node.type === "identifier"
        ? node
        : node.childForFieldName("name") ?? (node.type === "typed_parameter" ? node.namedChildren[0] : null);
      if (node.type === "keyword_separator") {
        keywordOnly = true;
      } else if (nameNode?.type === "identifier") {
        if (parameters.some((p) => p.name === nameNode.text)) {
          this.diagnostics.report(span, `parameter ${nameNode.text} appears twice`);
        }
        parameters.push({ name: nameNode.text, default: fallback, keywordOnly, span });
      } else {
        this.unsupported(
          node,
          `parameter ${node.text} is outside the subset`,
          "accepted: name, or name=default",
        );
      }
    }
    return parameters;
  }

  #block(node: Node): Statement[] {
    return this.nested(node, () => parts(node).flatMap((n) => n.isError ? [] : this.#statement(n)), []);
  }

  #statement(node: Node): Statement[] {
    const span = spanOf(node);
    switch (node.type) {
      case "expression_statement":
        return this.#simple(node);
      case "return_statement": {
        const value = parts(node)[0];
        return [{ kind: "return", value: value ? lowerExpression(value, this) : null, span }];
      }
      case "if_statement":
        return [this.#if(node)];
      case "for_statement": {
        const target = node.childForFieldName("left");
        const iterable = node.childForFieldName("right");
        const body = node.childForFieldName("body");
        const otherwise = node.childForFieldName("alternative");
        if (otherwise) {
          this.unsupported(otherwise, "a loop has no else", "write the statements after the loop");
        }
        if (!target || !iterable || !body) return [];
        const lowered = this.target(target);
        const over = lowerExpression(iterable, this);
        const statements = this.#block(body);
        return lowered ? [{ kind: "for", target: lowered, iterable: over, body: statements, span }] : [];
      }
      case "assert_statement": {
        const [condition, message] = parts(node);
        if (!condition) return [];
        return [{
          kind: "assert",
          condition: lowerExpression(condition, this),
          message: message ? lowerExpression(message, this) : null,
          span,
        }];
      }
      case "pass_statement":
        return [];
      default: {
        const note = INSTEAD[node.type] ?? "accepted: assignments, calls, if, for, assert and return";
        this.unsupported(firstLine(node), `${described(node)} is outside the subset`, note);
        return [];
      }
    }
  }

  #simple(node: Node): Statement[] {
    const inner = parts(node)[0];
    if (!inner || isDocumentation(node)) return [];
    const span = spanOf(inner);
    if (inner.type === "assignment") {
      const left = inner.childForFieldName("left");
      const right = inner.childForFieldName("right");
      if (right?.type === "assignment") {
        this.unsupported(inner, "one assignment a statement", "write each on a line of its own");
        return [];
      }
      if (!left || !right) return [];
      const value = lowerExpression(right, this);
      const target = this.target(left);
      return target ? [{ kind: "assign", target, value, span }] : [];
    }
    if (inner.type === "augmented_assignment") {
      const left = inner.childForFieldName("left");
      const operator = inner.childForFieldName("operator")?.text ?? "";
      const fix = left
        ? `write ${left.text} = ${left.text} ${operator.slice(0, -1)} ...`
        : "use a plain assignment";
      this.unsupported(inner, `${operator} is outside the subset`, fix);
      return [];
    }
    return [{ kind: "expression", value: lowerExpression(inner, this), span }];
  }

  #if(node: Node): Statement {
    const branches: Branch[] = [];
    let otherwise: Statement[] = [];
    const add = (part: Node) => {
      const condition = part.childForFieldName("condition");
      const body = part.childForFieldName("consequence");
      if (condition) {
        branches.push({ condition: lowerExpression(condition, this), body: body ? this.#block(body) : [] });
      }
    };
    add(node);
    for (const part of node.childrenForFieldName("alternative")) {
      if (part.type === "elif_clause") add(part);
      const body = part.childForFieldName("body");
      if (part.type === "else_clause" && body) otherwise = this.#block(body);
    }
    return { kind: "if", branches, otherwise, span: spanOf(node) };
  }

  target(node: Node): Target | undefined {
    const span = spanOf(node);
    if (node.type === "identifier") return { kind: "name", name: node.text, span };
    if (node.type === "attribute") {
      const lowered: Expression = lowerExpression(node, this);
      return lowered.kind === "attribute" ? lowered : undefined;
    }
    if (["pattern_list", "tuple_pattern", "list_pattern"].includes(node.type)) {
      const items = this.nested(node, () => parts(node).map((n) => this.target(n)), []);
      return items.some((i) => i === undefined)
        ? undefined
        : { kind: "targets", items: items.filter((i) => i !== undefined), span };
    }
    this.unsupported(
      node,
      `cannot assign to ${described(node)}`,
      "accepted: a name, an attribute of self, or several names",
    );
    return undefined;
  }
}

/** A node to point at, cut to its first line when it spans several: its first word. */
function firstLine(node: Node): Node {
  return node.startPosition.row === node.endPosition.row ? node : node.children[0] ?? node;
}

function isDocumentation(node: Node): boolean {
  const inner = node.namedChildren[0];
  return node.type === "expression_statement" && node.namedChildCount === 1 &&
    (inner?.type === "string" || inner?.type === "concatenated_string");
}
