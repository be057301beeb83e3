/** Small questions to tree-sitter's nodes. */
import type { Node } from "web-tree-sitter";
import type { Span } from "./diagnostics.ts";

export function spanOf(node: Node): Span {
  const { startPosition: start, endPosition: end } = node;
  return { row: start.row, column: start.column, endRow: end.row, endColumn: end.column };
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
