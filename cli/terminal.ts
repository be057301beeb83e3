/** What people see: progress on standard error, sizes and times in words, tables of 80 columns. */
import Table from "cli-table3";
import process from "node:process";

const COLUMNS = 80;

/** What a terminal obeys instead of showing (C0 but tab and newline, DEL, C1), and what turns the order of text around. */
const CONTROLS = /(?![\t\n])[\p{Cc}\p{Bidi_Control}]/gu;

/**
 * Text that may come from a model, a bundle or a file's name, for a terminal: what could move its cursor, clear it or
 * type into it is shown as an escape, like `\u001b`, which JSON strings may hold too.
 */
export function printable(text: string): string {
  return text.replaceAll(CONTROLS, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** `text` as it is for files and other programs, printable for a terminal. */
export function writeOut(text: string): void {
  process.stdout.write(process.stdout.isTTY === true ? printable(text) : text);
}

/** `text` for standard error, less bright where that is a terminal with colours (https://no-color.org). */
export function dim(text: string): string {
  const { NO_COLOR = "", TERM } = process.env;
  return process.stderr.isTTY === true && NO_COLOR === "" && TERM !== "dumb"
    ? `\x1b[2m${text}\x1b[22m`
    : text;
}

const NOTHING = { top: "", "top-mid": "", "top-left": "", "top-right": "", bottom: "", "bottom-mid": "" };
const PLAIN = {
  ...NOTHING,
  "bottom-left": "",
  "bottom-right": "",
  left: "",
  "left-mid": "",
  mid: "",
  "mid-mid": "",
  right: "",
  "right-mid": "",
  middle: "  ",
};

/** A table without lines or colour; every column but the first `left` is right-aligned. */
export function table(head: readonly string[], rows: readonly (readonly string[])[], left = 1): string {
  const drawn = new Table({
    chars: PLAIN,
    style: { head: [], border: [], "padding-left": 0, "padding-right": 0 },
    colAligns: head.map((_, column) => column < left ? "left" : "right"),
  });
  drawn.push([...head], ...rows.map((row) => [...row]));
  return drawn.toString().split("\n").map((line) => line.trimEnd()).join("\n");
}

/** `1.4 MB`: decimal units, as bandwidths are given. */
export function bytesText(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let [value, unit] = [bytes, 0];
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${unit === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function secondsText(seconds: number): string {
  if (seconds >= 120) return `${(seconds / 60).toFixed(1)} min`;
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  return seconds >= 1e-3 ? `${(seconds * 1e3).toFixed(1)} ms` : `${(seconds * 1e6).toFixed(1)} us`;
}

export function percentText(share: number): string {
  return `${(share * 100).toFixed(1)} %`;
}

/** A line at the bottom of the terminal that is written over; nothing where standard error is no terminal. */
export class Progress {
  readonly #shown = process.stderr.isTTY === true;
  readonly #started = performance.now();
  #last = 0;

  constructor(readonly title: string) {}

  /** Redraws at most 20 times a second; `done` of `total`, any unit. */
  readonly show = (done: number, total: number, what: string): void => {
    const now = performance.now();
    if (!this.#shown || (now - this.#last < 50 && done < total)) return;
    this.#last = now;
    const width = 20;
    const full = Math.round(width * Math.min(1, done / Math.max(total, 1)));
    const bar = "#".repeat(full) + "-".repeat(width - full);
    const text = `${this.title} [${bar}] ${percentText(done / Math.max(total, 1))} ${what}`;
    process.stderr.write(`\r\x1b[K${printable(text).slice(0, columns() - 1)}`);
  };

  /** Removes the line; returns seconds since the start. */
  finish(): number {
    if (this.#shown && this.#last > 0) process.stderr.write("\r\x1b[K");
    return (performance.now() - this.#started) / 1000;
  }
}

function columns(): number {
  return process.stderr.columns || COLUMNS;
}
