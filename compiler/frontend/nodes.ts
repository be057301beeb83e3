/** Small questions to tree-sitter's nodes. */
import type { Node } from "web-tree-sitter";
import type { Source, Span } from "./diagnostics.ts";

export function spanOf(node: Node, source: Source): Span {
  const { startPosition: start, endPosition: end } = node;
  return { source, row: start.row, column: start.column, endRow: end.row, endColumn: end.column };
}

/** The children of a node by the grammar's names of its fields; of several under one name, the first. */
export function fields(node: Node): Readonly<Partial<Record<string, Node>>> {
  const found: Partial<Record<string, Node>> = {};
  node.children.forEach((child, i) => {
    const name = node.fieldNameForChild(i);
    if (name !== null) found[name] ??= child;
  });
  return found;
}

/** Named children without comments and the backslashes of continued lines. */
export function parts(node: Node): Node[] {
  return node.namedChildren.filter((n) => n.type !== "comment" && n.type !== "line_continuation");
}

/** `a while statement`, from the grammar's name of a node. */
export function described(node: Node): string {
  const words = node.type.replaceAll("_", " ");
  return `${/^[aeiou]/.test(words) ? "an" : "a"} ${words}`;
}

/** A string that stands alone as a statement. */
export function isDocumentation(node: Node): boolean {
  const [inner, ...rest] = parts(node);
  return node.type === "expression_statement" && rest.length === 0 &&
    (inner?.type === "string" || inner?.type === "concatenated_string");
}

/** Several targets of one assignment: `a, b` or `(a, b)`. */
export function isPattern(node: Node): boolean {
  return ["pattern_list", "tuple_pattern", "list_pattern"].includes(node.type);
}

/** What is assigned to in `node` and the blocks inside it: the left sides of assignments and loops. */
export function targetsIn(node: Node): Node[] {
  return node.descendantsOfType(["assignment", "for_statement"])
    .flatMap((n) => fields(n).left ?? []).flatMap((left) => leaves(left));
}

/** The targets in a pattern; `depth` bounds what hostile source nests. */
export function leaves(target: Node, depth = 0): Node[] {
  if (!isPattern(target)) return [target];
  return depth > 64 ? [] : parts(target).flatMap((part) => leaves(part, depth + 1));
}
