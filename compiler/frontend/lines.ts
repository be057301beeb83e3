/**
 * Logical lines of Python source (a statement or the header of a block, over as many physical lines as its brackets
 * span) and the mistakes that can be seen without a grammar: brackets, strings, indentation, a header's colon.
 * The parser is lenient about blocks, and its error nodes are coarse: one hides the next.
 */
import type { Span } from "./diagnostics.ts";

export interface LogicalLine {
  /** First row in the source, from 0. */
  readonly row: number;
  /** Columns of indentation. */
  readonly indent: number;
  /** Without indentation before and without the newline after; newlines inside brackets are kept. */
  readonly text: string;
  /** Whether it opens a block: its last token is a colon outside brackets. */
  readonly header: boolean;
  /** A mistake was found in it. */
  readonly broken: boolean;
}

/** Takes a mistake. */
type Report = (span: Span, message: string, ...notes: string[]) => void;

/** Strings (the groups are their opening quotes, and their closing ones if they are closed), space, all else. */
const TOKEN =
  /("""|''')(?:\\[^]|(?!\1)[^])*(\1)?|(["'])(?:\\\r?\n|\\.|(?!\3)[^\\\n])*(\3)?|#.*|\\\r?\n|\n|[^\S\n]+|[^]/g;
const OPENS: Readonly<Record<string, string>> = { ")": "(", "]": "[", "}": "{" };
const HEADERS = /^(class|def|if|elif|else|for|while|with|try|except|finally)\b/;
/** What cannot continue an expression: a bracket still open before it was forgotten. */
const STATEMENT = /^[ \t]*(class|def|return|assert|import|pass)\b|^[ \t]*self\.\w+[ \t]*=[^=]/;

export function scanLines(source: string, report: Report): LogicalLine[] {
  const lines: LogicalLine[] = [];
  let mistakes = 0;
  const mistake = (span: Span, message: string) => {
    mistakes++;
    report(span, message);
  };
  const open: { readonly bracket: string; readonly span: Span }[] = [];
  let row = 0, rowStart = 0;
  /** The line being scanned: where it starts, where its last token ends, and whether a colon stood outside brackets. */
  let line: { start: Span; from: number; to: number; last: Span; colon: boolean; known: number } | undefined;
  const finish = () => {
    if (!line) return;
    for (const { bracket, span } of open.splice(0)) mistake(span, `"${bracket}" is never closed`);
    const { start, last, colon, known } = line;
    const text = source.slice(line.from, line.to);
    const word = HEADERS.exec(text)?.[1];
    if (word !== undefined && !colon && mistakes === known) {
      mistake(last, `":" is missing at the end of this ${word}`);
    }
    const header = text.endsWith(":") || (word !== undefined && !colon);
    lines.push({ row: start.row, indent: start.column, text, header, broken: mistakes > known });
    line = undefined;
  };
  for (const { 0: token, 1: triple, 2: tripleEnd, 3: quote, 4: quoteEnd, index } of source.matchAll(TOKEN)) {
    const column = index - rowStart;
    const span = { row, column, endRow: row, endColumn: column + 1 };
    const newlines = token.split("\n").length - 1;
    row += newlines;
    if (newlines > 0) rowStart = index + token.lastIndexOf("\n") + 1;
    if (token === "\n") {
      const next = source.slice(rowStart, source.indexOf("\n", rowStart) >>> 0);
      if (open.length === 0 || STATEMENT.test(next)) finish();
      continue;
    }
    if (/^[\s#]|^\\\r?\n/.test(token)) continue;
    line ??= { start: span, from: index, to: index, last: span, colon: false, known: mistakes };
    line.to = index + token.length;
    line.last = { row, column: line.to - rowStart, endRow: row, endColumn: line.to - rowStart + 1 };
    if (triple !== undefined || quote !== undefined) {
      const endColumn = source.slice(index).search(/\n|$/) + column;
      if (triple !== undefined && tripleEnd === undefined) {
        mistake({ ...span, endColumn }, "this string is not closed in this file");
      } else if (quote !== undefined && quoteEnd === undefined) {
        mistake({ ...span, endColumn }, "this string is not closed on its line");
      }
    } else if ("([{".includes(token)) {
      open.push({ bracket: token, span });
    } else if (OPENS[token] !== undefined) {
      const top = open.pop();
      if (!top) mistake(span, `"${token}" closes nothing`);
      else if (top.bracket !== OPENS[token]) {
        const where = top.span.row === span.row ? "" : ` of line ${top.span.row + 1}`;
        mistake(span, `"${token}" cannot close the "${top.bracket}"${where}`);
      }
    } else if (token === ":" && open.length === 0) {
      line.colon = true;
    }
  }
  finish();
  checkIndentation(lines, report);
  return lines;
}

/** Python's rules of blocks: deeper after a header, and nowhere else; back only to a level that is open. */
function checkIndentation(lines: readonly LogicalLine[], report: Report): void {
  const levels = [0];
  let header: LogicalLine | undefined;
  const at = ({ row, indent }: LogicalLine, message: string, ...notes: string[]) =>
    report({ row, column: indent, endRow: row, endColumn: indent + 1 }, message, ...notes);
  for (const line of lines) {
    const level = levels.at(-1) ?? 0;
    if (line.indent > level) {
      if (!header) at(line, "this line is indented, but no block starts before it");
      levels.push(line.indent);
    } else if (header) {
      const empty = `the block of line ${header.row + 1} is empty or not indented`;
      at(line, empty, "indent its statements, or write pass");
    }
    // A line that matches no level leaves them as they are, so that it is reported alone.
    if (levels.includes(line.indent)) levels.length = levels.indexOf(line.indent) + 1;
    else at(line, "this indentation matches no block around it");
    header = line.header ? line : undefined;
  }
  if (header) at(header, "the file ends before the block of this line");
}
