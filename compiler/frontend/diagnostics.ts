/**
 * Diagnostics of model descriptions: where, the source line with a caret, what was found and what would be accepted.
 * They are collected, so that one run reports every independent mistake, and thrown together as one HcinferError.
 */
import { HcinferError } from "../errors.ts";

/** A file that diagnostics point into. */
export class Source {
  readonly lines: readonly string[];

  constructor(readonly file: string, readonly text: string) {
    this.lines = text.split("\n");
  }
}

/** A stretch of source. Rows and columns count from 0; columns are UTF-16 units; the end is exclusive. */
export interface Span {
  /** Where it is not the file that the diagnostics were made for. */
  readonly source?: Source;
  readonly row: number;
  readonly column: number;
  readonly endRow: number;
  readonly endColumn: number;
}

export interface Diagnostic {
  readonly span: Span;
  /** What was found, and why it cannot stand. */
  readonly message: string;
  /** What would be accepted there, or other help; printed below the caret. */
  readonly notes: readonly string[];
}

/** Beyond this many, more are rarely read: the rest are likely consequences of the first. */
const MOST_REPORTED = 20;
/** Columns of a source line that are printed; a longer line is cut around the caret. */
const LINE_WIDTH = 100;

/** Thrown inside the frontend to give up early; never leaves it. */
export class TooManyDiagnostics extends Error {}

export class Diagnostics {
  readonly #main: Source;
  readonly #found = new Map<string, Diagnostic>();

  constructor(file: string, text: string) {
    this.#main = new Source(file, text);
  }

  get size(): number {
    return this.#found.size;
  }

  /**
   * Adds a diagnostic. One place is reported once: the same line of `forward` is traced for every layer.
   *
   * @throws TooManyDiagnostics when enough were reported.
   */
  report(span: Span, message: string, ...notes: string[]): void {
    const place = `${this.#file(span)}:${span.row}:${span.column}`;
    if (!this.#found.has(place)) this.#found.set(place, { span, message, notes });
    if (this.#found.size >= MOST_REPORTED) throw new TooManyDiagnostics();
  }

  /** Whether a diagnostic starts in this row. */
  hasInRow(span: Span): boolean {
    return [...this.#found.values()].some((d) =>
      d.span.row === span.row && this.#file(d.span) === this.#file(span)
    );
  }

  #file({ source = this.#main }: Span): string {
    return source.file;
  }

  /** All diagnostics by file and in source order, each as `file:line:column: message`, the source line, a caret and notes. */
  format(): string {
    const files = [...new Set([...this.#found.values()].map((d) => this.#file(d.span)))];
    const sorted = [...this.#found.values()].sort((a, b) =>
      files.indexOf(this.#file(a.span)) - files.indexOf(this.#file(b.span)) || a.span.row - b.span.row ||
      a.span.column - b.span.column
    );
    const parts = sorted.map((d) => this.#formatOne(d));
    if (sorted.length >= MOST_REPORTED) parts.push(`stopped after ${MOST_REPORTED} errors`);
    return parts.join("\n\n");
  }

  /** @throws HcinferError "model-description" with everything that was reported, if anything was. */
  throwIfAny(): void {
    if (this.#found.size > 0) throw new HcinferError("model-description", this.format());
  }

  #formatOne({ span, message, notes }: Diagnostic): string {
    const { file, lines } = span.source ?? this.#main;
    const line = (lines[span.row] ?? "").replace(/\r$/, "");
    const from = Math.max(0, Math.min(span.column - LINE_WIDTH / 2, line.length - LINE_WIDTH));
    const shown = line.slice(from, from + LINE_WIDTH);
    const caret = span.column - from;
    const end = Math.min(span.endRow === span.row ? span.endColumn - from : shown.length, shown.length);
    const number = String(span.row + 1).padStart(5);
    const gutter = " ".repeat(number.length);
    // Tabs are kept under tabs, so that the caret stands below its column however wide they are.
    const indent = shown.slice(0, caret).replace(/[^\t]/g, " ").padEnd(caret);
    return [
      `${file}:${span.row + 1}:${span.column + 1}: error: ${message}`,
      `${number} | ${shown}`,
      `${gutter} | ${indent}^${"~".repeat(Math.max(0, end - caret - 1))}`,
      ...notes.map((note) => `${gutter} = ${note}`),
    ].join("\n");
  }
}

/** The known names that look like `name`, closest first, at most three. */
export function nearNames(name: string, known: Iterable<string>): string[] {
  const limit = Math.max(1, Math.floor(Math.min(name.length, 32) / 3));
  const near: { readonly candidate: string; readonly distance: number }[] = [];
  for (const candidate of new Set(known)) {
    // A name inside the other is near too: `num_layers` in `num_hidden_layers`, `vocab` in `vocab_size`.
    const distance = Math.min(
      editDistance(name, candidate, limit),
      sharesWords(name, candidate) ? limit : Infinity,
    );
    if (distance <= limit) near.push({ candidate, distance });
  }
  near.sort((a, b) => a.distance - b.distance || (a.candidate < b.candidate ? -1 : 1));
  return near.slice(0, 3).map((n) => n.candidate);
}

/** `; did you mean "x" or "y"?`, or nothing when no known name is near. */
export function didYouMean(name: string, known: Iterable<string>): string {
  const near = nearNames(name, known);
  if (near.length === 0) return "";
  return `; did you mean ${near.map((n) => JSON.stringify(n)).join(" or ")}?`;
}

/** Every word of one snake_case name is in the other, and what they share is more than one short word. */
function sharesWords(a: string, b: string): boolean {
  const one = new Set(a.toLowerCase().split("_").filter((w) => w.length > 0));
  const other = new Set(b.toLowerCase().split("_").filter((w) => w.length > 0));
  const common = [...one].filter((w) => other.has(w));
  return common.join("").length >= 5 && common.length === Math.min(one.size, other.size);
}

/** Levenshtein distance with swaps of neighbours as one edit; Infinity when it is certainly above `limit`. */
function editDistance(a: string, b: string, limit: number): number {
  if (Math.abs(a.length - b.length) > limit || a.length > 64) return Infinity;
  let before: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let cost = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        cost = Math.min(cost, before[j - 2]! + 1);
      }
      row.push(cost);
    }
    before = last;
    last = row;
  }
  return last[b.length]!;
}
