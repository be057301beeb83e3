/**
 * Python syntax trees, from web-tree-sitter and tree-sitter-python. The one place that loads the grammar: model
 * descriptions (trace.ts) and the text of a graph (../ir/parse.ts) are both read through it.
 */
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { Language, Parser, type Tree } from "web-tree-sitter";
import { HcinferError } from "../errors.ts";

let grammar: Promise<Language> | undefined;

async function loadGrammar(): Promise<Language> {
  try {
    await Parser.init();
    const path = createRequire(import.meta.url).resolve("tree-sitter-python/tree-sitter-python.wasm");
    return await Language.load(new Uint8Array(await readFile(path)));
  } catch (cause) {
    throw new HcinferError(
      "environment",
      `the Python grammar could not be loaded: ${cause instanceof Error ? cause.message : String(cause)}. ` +
        `Run "npm install" or "deno install" in hcinfer's folder to restore the package tree-sitter-python.`,
      { cause },
    );
  }
}

/**
 * Parses Python source. Never throws on malformed source: the tree then has error nodes (`rootNode.hasError`).
 * Rows and columns of its nodes count from 0, columns in UTF-16 units, as JavaScript's strings.
 *
 * The tree lives in WebAssembly memory: the caller deletes it (`tree.delete()`), and any cursor of it before that.
 *
 * @throws HcinferError "environment" when the grammar cannot be loaded.
 */
export async function parsePython(source: string): Promise<Tree> {
  grammar ??= loadGrammar();
  const language = await grammar;
  const parser = new Parser();
  try {
    parser.setLanguage(language);
    const tree = parser.parse(source);
    // Null only without a language or when cancelled; neither happens here.
    if (!tree) throw new HcinferError("environment", "the Python parser gave no tree");
    return tree;
  } finally {
    parser.delete();
  }
}
