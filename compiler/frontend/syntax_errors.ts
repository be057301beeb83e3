import type { Tree } from "web-tree-sitter";
import type { Diagnostics } from "./diagnostics.ts";
import { spanOf } from "./nodes.ts";

// deno-lint-ignore require-await
export async function reportSyntaxErrors(
  _source: string,
  tree: Tree,
  diagnostics: Diagnostics,
): Promise<void> {
  diagnostics.report(spanOf(tree.rootNode), "syntax error");
}
