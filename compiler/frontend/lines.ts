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

export interface Mistake {
  readonly span: Span;
  readonly message: string;
  readonly note?: string;
}

const CLOSES: Readonly<Record<string, string>> = { ")": "(", "]": "[", "}": "{" };
const HEADERS = /^(class|def|if|elif|else|for|while|with|try|except|finally)\b/;
/** What cannot continue an expression: a bracket still open before it was forgotten. */
const STATEMENT = /^[ \t]*(class|def|return|assert|import|pass)\b|^[ \t]*self\.\w+[ \t]*=[^=]/;

export function scanLines(source: string): { lines: LogicalLine[]; mistakes: Mistake[] } {
  const scanner = new Scanner(source);
  scanner.run();
  return { lines: scanner.lines, mistakes: [...scanner.mistakes, ...indentation(scanner.lines)] };
}

interface Place {
  readonly row: number;
  readonly column: number;
}

class Scanner {
  readonly lines: LogicalLine[] = [];
  readonly mistakes: Mistake[] = [];
  readonly #source: string;
  #at = 0;
  #row = 0;
  #rowStart = 0;
  #open: { readonly bracket: string; readonly place: Place }[] = [];

  constructor(source: string) {
    this.#source = source;
  }

  run(): void {
    while (this.#at < this.#source.length) {
      const row = this.#restOfRow();
      const indent = /^[ \t\f]*/.exec(row)?.[0].length ?? 0;
      if (/^[ \t\f]*(#.*)?\r?$/.test(row)) this.#nextRow();
      else this.#line(indent);
    }
  }

  #place(): Place {
    return { row: this.#row, column: this.#at - this.#rowStart };
  }

  #restOfRow(): string {
    const end = this.#source.indexOf("\n", this.#at);
    return this.#source.slice(this.#at, end < 0 ? undefined : end);
  }

  #nextRow(): void {
    const end = this.#source.indexOf("\n", this.#at);
    this.#at = end < 0 ? this.#source.length : end + 1;
    this.#row++;
    this.#rowStart = this.#at;
  }

  #mistake({ row, column }: Place, length: number, message: string): void {
    this.mistakes.push({ span: { row, column, endRow: row, endColumn: column + length }, message });
  }

  /** Scans the logical line that starts in this row, and stops at the start of the row after it. */
  #line(indent: number): void {
    const { row } = this.#place();
    const known = this.mistakes.length;
    this.#open = [];
    this.#at += indent;
    const start = this.#at;
    let end = start;
    /** After the last token, and that token's last character. */
    let last = { place: this.#place(), character: "" };
    let colon = false;
    while (this.#at < this.#source.length) {
      const character = this.#source[this.#at] ?? "";
      if (character === "\n") {
        this.#nextRow();
        if (this.#open.length === 0 || STATEMENT.test(this.#restOfRow())) break;
      } else if (character === "#") {
        this.#at += this.#restOfRow().length;
      } else if (character === "\\" && /^\\\r?$/.test(this.#restOfRow())) {
        this.#nextRow();
      } else if (/\s/.test(character)) {
        this.#at++;
      } else {
        if (character === '"' || character === "'") this.#string(character);
        else this.#bracket(character);
        if (character === ":" && this.#open.length === 0) colon = true;
        last = { place: this.#place(), character };
        end = this.#at;
      }
    }
    for (const { bracket, place } of this.#open) this.#mistake(place, 1, `"${bracket}" is never closed`);
    const text = this.#source.slice(start, end);
    const word = HEADERS.exec(text)?.[1];
    const forgotten = word !== undefined && !colon && this.mistakes.length === known;
    if (forgotten) this.#mistake(last.place, 1, `":" is missing at the end of this ${word}`);
    const header = last.character === ":" || (word !== undefined && !colon);
    this.lines.push({ row, indent, text, header, broken: this.mistakes.length > known });
  }

  #bracket(character: string): void {
    const place = this.#place();
    this.#at++;
    if ("([{".includes(character)) {
      this.#open.push({ bracket: character, place });
      return;
    }
    const opener = CLOSES[character];
    if (opener === undefined) return;
    const top = this.#open.pop();
    if (!top) this.#mistake(place, 1, `"${character}" closes nothing`);
    else if (top.bracket !== opener) {
      const where = top.place.row === place.row ? "" : ` of line ${top.place.row + 1}`;
      this.#mistake(place, 1, `"${character}" cannot close the "${top.bracket}"${where}`);
    }
  }

  /** Passes over the string that starts here; one that is not closed ends with its row, or with the file. */
  #string(quote: string): void {
    const place = this.#place();
    const length = this.#restOfRow().length;
    const triple = this.#source.startsWith(quote.repeat(3), this.#at);
    const close = triple ? quote.repeat(3) : quote;
    this.#at += close.length;
    while (this.#at < this.#source.length) {
      if (this.#source.startsWith(close, this.#at)) {
        this.#at += close.length;
        return;
      }
      const character = this.#source[this.#at];
      if (character === "\n") {
        if (!triple) break;
        this.#nextRow();
      } else if (character === "\\" && this.#source[this.#at + 1] === "\n") {
        this.#nextRow();
      } else {
        this.#at += character === "\\" ? 2 : 1;
      }
    }
    this.#mistake(place, length, `this string is not closed ${triple ? "in this file" : "on its line"}`);
  }
}

/** Python's rules of blocks: deeper after a header, and nowhere else; back only to a level that is open. */
function indentation(lines: readonly LogicalLine[]): Mistake[] {
  const mistakes: Mistake[] = [];
  const levels = [0];
  let header: LogicalLine | undefined;
  for (const line of lines) {
    const at = (message: string, note?: string) => {
      const span = { row: line.row, column: line.indent, endRow: line.row, endColumn: line.indent + 1 };
      mistakes.push({ span, message, ...(note === undefined ? {} : { note }) });
    };
    const level = levels.at(-1) ?? 0;
    if (header) {
      if (line.indent > level) levels.push(line.indent);
      else {at(
          `the block of line ${header.row + 1} is empty or not indented`,
          "indent its statements, or write pass",
        );}
    } else if (line.indent > level) {
      at("this line is indented, but no block starts before it");
      levels.push(line.indent);
    }
    // A line that matches no level leaves them as they are, so that it is reported alone.
    if (levels.includes(line.indent)) levels.length = levels.indexOf(line.indent) + 1;
    else at("this indentation matches no block around it");
    header = line.header ? line : undefined;
  }
  if (header) {
    const { row, indent } = header;
    const span = { row, column: indent, endRow: row, endColumn: indent + 1 };
    mistakes.push({ span, message: "the file ends before the block of this line" });
  }
  return mistakes;
}
