/**
 * The files of a description: the one that was given, and those it imports names from (`from decoder import Block`).
 * An imported file lies beside the file that imports it, or in graphs/shared. Each is parsed, checked and compiled once,
 * after what it imports.
 */
import { readFileSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Node } from "web-tree-sitter";
import { didYouMean, Source } from "./diagnostics.ts";
import { fields, isDocumentation, parts, targetsIn } from "./nodes.ts";
import { parsePython } from "./python.ts";
import { classDefinition, functionDefinition, isOutside, statement } from "./statements.ts";
import { reportSyntaxErrors } from "./syntax_errors.ts";
import type { Tracing } from "./tracing.ts";
import { INSTEAD, Unit } from "./unit.ts";

const SHARED = fileURLToPath(new URL("../../graphs/shared/", import.meta.url));
/** Longer than any description; a longer file is another kind of file. */
const LONGEST_SOURCE = 1 << 16;

export class Files {
  /** Every file that was compiled, after those it imports. */
  readonly compiled: Unit[] = [];
  /** Files whose imports are being compiled, outermost first. */
  readonly #open: string[] = [];

  constructor(readonly tracing: Tracing) {}

  /** Compiles a file after what it imports. Mistakes go to the diagnostics of the trace. */
  async compile(source: Source): Promise<Unit> {
    const { diagnostics } = this.tracing;
    if (source.text.length > LONGEST_SOURCE) {
      const found = `a description has at most ${LONGEST_SOURCE} characters, found ${source.text.length}`;
      diagnostics.report({ source, row: 0, column: 0, endRow: 0, endColumn: 1 }, found);
      return new Unit(source, this.tracing, true);
    }
    const tree = await parsePython(source.text);
    this.#open.push(source.file);
    try {
      const broken = await reportSyntaxErrors(source, tree, diagnostics);
      const unit = new Unit(source, this.tracing, broken);
      const statements = parts(tree.rootNode).filter((node) => !node.isError);
      for (const node of statements) {
        if (node.type === "import_from_statement") await this.#import(node, unit);
      }
      compileStatements(statements.filter((node) => node.type !== "import_from_statement"), unit);
      this.compiled.push(unit);
      return unit;
    } finally {
      this.#open.pop();
      tree.delete();
    }
  }

  async #import(node: Node, unit: Unit): Promise<void> {
    const names = node.childrenForFieldName("name");
    const { module_name: module } = fields(node);
    const plain = module?.type === "dotted_name" && names.length > 0 &&
      [module, ...names].every((n) => /^\w+$/.test(n.text));
    if (!plain) {
      return unit.unsupported(node, "this import is outside the subset", INSTEAD[node.type] ?? "");
    }
    for (const name of names) define(name, unit);
    const origin = await this.#find(module, unit);
    if (origin === undefined) return;
    for (const name of names) {
      unit.imports.set(name.text, origin);
      if (origin.names.has(name.text) || origin.broken) continue;
      const file = basename(origin.source.file);
      unit.report(name, `${file} defines no ${name.text}${didYouMean(name.text, origin.names)}`);
    }
  }

  /** The file that an import names; undefined when there is none, which is reported. */
  async #find(module: Node, unit: Unit): Promise<Unit | undefined> {
    const name = `${module.text}.py`;
    const file = [dirname(unit.source.file), SHARED].map((folder) => join(folder, name))
      .find((path) => statSync(path, { throwIfNoEntry: false })?.isFile());
    if (file === undefined) {
      const message = `there is no ${name} beside ${basename(unit.source.file)} or in graphs/shared`;
      const torch = module.text === "torch" ? ["layers and ops are built in; remove the import"] : [];
      unit.report(module, message, ...torch);
      return undefined;
    }
    if (this.#open.includes(file)) {
      const circle = [...this.#open.slice(this.#open.indexOf(file)), file].map((path) => basename(path));
      unit.report(module, `these files import each other: ${circle.join(" -> ")}`);
      return undefined;
    }
    const known = this.compiled.find((other) => other.source.file === file);
    return known ?? await this.compile(new Source(file, readFileSync(file, "utf8")));
  }
}

function define(node: Node, unit: Unit): void {
  if (unit.names.has(node.text)) unit.misplaced(node, `${node.text} is defined twice in this file`);
  unit.names.add(node.text);
}

/** What a file consists of but imports: classes, functions and constants. */
function compileStatements(statements: readonly Node[], unit: Unit): void {
  // All names first: bodies may use what stands below them.
  for (const node of statements) {
    const own = node.type === "expression_statement" ? targetsIn(node) : [fields(node).name];
    for (const name of own) if (name?.type === "identifier") define(name, unit);
  }
  for (const node of statements) {
    if (node.type === "class_definition") {
      unit.model = classDefinition(node, unit);
      unit.globals.set(unit.model.name, unit.model);
    } else if (node.type === "function_definition") {
      const { name, bind } = functionDefinition(node, unit);
      unit.globals.set(name.text, bind());
    } else {
      const [inner] = parts(node);
      const plain = inner?.type === "assignment" && targetsIn(node).every((n) => n.type === "identifier");
      const run = plain || isOutside(node) ? statement(node, unit) : undefined;
      if (run) unit.constants.push(run);
      else if (!plain && !isOutside(node) && !isDocumentation(node)) {
        const accepted = "accepted: imports, class X(Module), def, and constants (`NAME = value`)";
        unit.misplaced(node, "this statement cannot stand outside a class or function", accepted);
      }
    }
  }
}
