/**
 * Syntax errors, each on its own. tree-sitter always gives a tree, but its error nodes are coarse: one mistake may
 * cover a whole file and hide the next. So source that does not parse is cut into logical lines, and each is parsed
 * alone.
 */
import type { Node, Tree } from "web-tree-sitter";
import type { Diagnostics, Source } from "./diagnostics.ts";
import { type LogicalLine, scanLines } from "./lines.ts";
import { spanOf } from "./nodes.ts";
import { parsePython } from "./python.ts";

/** Lines that are parsed alone, at most: a longer file that is wrong is likely no description. */
const MOST_LINES = 3000;
const IF = "if x:\n    pass\n";

/** Reports every syntax error; false when there is none. */
export async function reportSyntaxErrors(
  source: Source,
  tree: Tree,
  diagnostics: Diagnostics,
): Promise<boolean> {
  const known = diagnostics.size;
  const lines = scanLines(
    source.text,
    (span, ...message) => diagnostics.report({ source, ...span }, ...message),
  );
  // The parser takes blocks that are empty or oddly indented; the scan above does not.
  if (!tree.rootNode.hasError) return diagnostics.size > known;
  for (const line of lines.slice(0, MOST_LINES)) {
    if (!line.broken) await reportLine(line, source, diagnostics);
  }
  if (diagnostics.size === 0) {
    const error = firstError(tree.rootNode) ?? tree.rootNode;
    diagnostics.report(spanOf(error, source), `syntax error at ${quoted(error.text)}`);
  }
  return true;
}

async function reportLine(line: LogicalLine, source: Source, diagnostics: Diagnostics): Promise<void> {
  const before = /^(elif|else)\b/.test(line.text) ? IF : "";
  const tree = await parsePython(`${before}${line.text}\n${line.header ? "    pass\n" : ""}`);
  try {
    const error = tree.rootNode.hasError ? firstError(tree.rootNode) : undefined;
    if (!error) return;
    const rows = before === "" ? 0 : 2;
    const place = ({ row, column }: { row: number; column: number }) => ({
      row: line.row + Math.max(0, row - rows),
      // Only the first row lost its indentation.
      column: row === rows ? column + line.indent : column,
    });
    const start = place(error.startPosition);
    const end = place(error.endPosition);
    const found = error.isMissing
      ? `${JSON.stringify(error.type)} is missing here`
      : `syntax error at ${quoted(error.text)}`;
    const span = { source, ...start, endRow: end.row, endColumn: end.column };
    diagnostics.report(span, found, ...hints(line.text, error.text));
  } finally {
    tree.delete();
  }
}

/** What is often meant by what was written. */
function hints(line: string, error: string): string[] {
  if (/^(if|elif|assert)\b[^=!<>]*=[^=]/.test(line)) return ["`==` compares; `=` assigns"];
  if (/^[&|!]/.test(error) && /&&|\|\||!/.test(line)) return ["accepted: and, or, not"];
  if (/[\u2018\u2019\u201c\u201d]/.test(line)) return ["quotes must be \" or '"];
  return [];
}

/** The first error node that has none inside. Iterative: hostile source nests without limit. */
function firstError(root: Node): Node | undefined {
  let at = root;
  for (;;) {
    const inner = at.children.find((child) => child.hasError || child.isError || child.isMissing);
    if (!inner) return at.isError || at.isMissing ? at : undefined;
    at = inner;
  }
}

function quoted(text: string): string {
  const line = text.split("\n", 1)[0] ?? "";
  return JSON.stringify(line.length > 40 ? `${line.slice(0, 40)}...` : line);
}
