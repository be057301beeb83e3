/**
 * One file of a description while it is compiled: what its names mean, and how it reports what is outside the subset.
 * Compiling walks tree-sitter's nodes once and makes of each a function that evaluates it (statements.ts,
 * expressions.ts); the walk is also the static check of the whole file.
 */
import type { Node } from "web-tree-sitter";
import { known } from "./attributes.ts";
import { PREDEFINED } from "./builtins.ts";
import { didYouMean, type Source, type Span } from "./diagnostics.ts";
import { described, spanOf } from "./nodes.ts";
import type { Tracing } from "./tracing.ts";
import type { Evaluate, Execute, ModuleType, Scope, Value } from "./values.ts";

/** Deeper nesting is no model description, and would exhaust the stack. */
const DEEPEST = 64;

const IMPORT =
  "accepted, at the top of a file: from decoder import Name (of a file beside it, or in graphs/shared)";
const COMPREHENSION = "write a list comprehension, [... for ... in ...]";
const ONE_INDEX = "accepted: one index, a[i]";
const ARGUMENTS = "pass values as arguments";
/** What to write in place of what is outside the subset, by the grammar's kinds of nodes. */
export const INSTEAD: Readonly<Partial<Record<string, string>>> = {
  import_statement: IMPORT,
  import_from_statement: IMPORT,
  future_import_statement: IMPORT,
  while_statement: "loop with `for` over a range or a list",
  try_statement: 'check with `if`, or state a requirement with `assert condition, "message"`',
  raise_statement: 'state a requirement with `assert condition, "message"`',
  with_statement: "write its statements without `with`",
  match_statement: "use `if`, `elif` and `else`",
  break_statement: "choose what the loop runs over, or use `if`",
  continue_statement: "use `if` inside the loop",
  decorated_definition: "write the definition without decorators",
  global_statement: ARGUMENTS,
  nonlocal_statement: ARGUMENTS,
  delete_statement: "leave the name unused",
  yield: "return a value or a list",
  lambda: "define a function with def",
  generator_expression: COMPREHENSION,
  set_comprehension: COMPREHENSION,
  dictionary_comprehension: COMPREHENSION,
  dictionary: "use attributes of self, or a list",
  set: "use a list",
  named_expression: "assign in a statement of its own",
  list_splat: "write the items out",
  slice: ONE_INDEX,
  ellipsis: ONE_INDEX,
  await: "call it directly",
};

export class Unit {
  /** What the file defines, filled while it is compiled. */
  readonly globals: Scope = new Map();
  /** Every name of the file, known before any of its bodies is compiled. */
  readonly names = new Set<string>();
  /** Files that names are imported from. */
  readonly imports = new Map<string, Unit>();
  /** Its last class. */
  model: ModuleType | undefined;
  /** Its assignments, which run before anything is traced. */
  readonly constants: Execute[] = [];
  #locals: ReadonlySet<string> = new Set();
  #depth = 0;

  /** `broken`: the file has syntax errors, so that parts may stand in blocks they do not belong to. */
  constructor(readonly source: Source, readonly tracing: Tracing, readonly broken: boolean) {}

  span(node: Node): Span {
    return spanOf(node, this.source);
  }

  report(node: Node, message: string, ...notes: string[]): void {
    this.tracing.diagnostics.report(this.span(node), message, ...notes);
  }

  /** Reports what is outside the subset, unless a syntax error may have made it. */
  unsupported(node: Node, message: string, ...notes: string[]): undefined {
    const doubtful = this.broken &&
      (node.hasError || this.tracing.diagnostics.hasInRow(this.span(node)));
    if (!doubtful) this.report(node, message, ...notes);
  }

  /** Reports a kind of node that is not in the subset; `accepted` is what could stand there. */
  outside(node: Node, accepted: string): undefined {
    if (node.isError || node.isMissing) return;
    // A block is pointed at by its first word.
    const at = node.startPosition.row === node.endPosition.row ? node : node.children[0] ?? node;
    const message = `${described(node)} is outside the subset`;
    return this.unsupported(at, message, INSTEAD[node.type] ?? accepted);
  }

  /** Reports what a syntax error may have moved to another block, or made of a definition that is lost. */
  misplaced(node: Node, message: string, ...notes: string[]): void {
    if (!this.broken) this.report(node, message, ...notes);
  }

  /** Compiles one level deeper; undefined for a level too many, which is reported. */
  nested<R>(node: Node, compile: () => R): R | undefined {
    if (this.#depth >= DEEPEST) {
      this.report(node, `nested more than ${DEEPEST} levels deep`, "give inner parts names");
      return undefined;
    }
    this.#depth++;
    try {
      return compile();
    } finally {
      this.#depth--;
    }
  }

  /** Compiles with these names as locals, beside those around them. */
  withLocals<R>(names: Iterable<string>, compile: () => R): R {
    const outer = this.#locals;
    this.#locals = new Set([...outer, ...names]);
    try {
      return compile();
    } finally {
      this.#locals = outer;
    }
  }

  /**
   * Reads a name. As in Python, a name that a function assigns anywhere is its own everywhere in it; all others are
   * the file's, an import or built in.
   */
  name(node: Node): Evaluate | undefined {
    const name = node.text;
    const span = this.span(node);
    const read = (value: Value | undefined, ...notes: string[]) =>
      value === undefined
        ? this.tracing.fail(span, `${name} is read before it has a value`, ...notes)
        : known(value);
    const isGlobal = this.names.has(name) || PREDEFINED.has(name);
    if (this.#locals.has(name)) {
      const hides =
        `it is assigned in this function, so it is not the ${name} outside; give it a name of its own`;
      return (scope) => read(scope.get(name), ...(isGlobal ? [hides] : []));
    }
    if (isGlobal) return () => read(this.lookup(name));
    const near = didYouMean(name, [...this.#locals, ...this.names, ...PREDEFINED.keys()]);
    const torch = name === "torch" || name === "nn"
      ? ["layers are built in: write Linear, not nn.Linear"]
      : [];
    this.misplaced(node, `${name} is not defined${near}`, ...torch);
    return undefined;
  }

  /** The value of a name of the file; undefined before its assignment has run. */
  lookup(name: string): Value | undefined {
    const origin = this.imports.get(name);
    if (origin !== undefined) return origin.lookup(name);
    return this.globals.has(name) ? this.globals.get(name) : PREDEFINED.get(name);
  }
}
