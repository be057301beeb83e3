/** RESULTS.md: text between markers is replaced, the rest stays. */
import { readFileSync, writeFileSync } from "node:fs";
import { HcinferError } from "../../compiler/errors.ts";
import type { Row } from "./setting.ts";

export const SECTIONS = ["measured", "predicted", "kernels"] as const;
export type Section = typeof SECTIONS[number];

export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("\n");
}

/** All parts as one table, a line for each part's title. */
export function measuredTable(
  parts: readonly { readonly title: string; readonly rows: readonly Row[] }[],
): string {
  const rows = parts.flatMap(({ title, rows }) => [
    [`**${title}**`, "", ""],
    ...rows.map(({ what, found, target = "" }) => [what, found, target]),
  ]);
  return table(["figure", "found", "target"], rows);
}

/** Replaces what stands between `<!-- section -->` and `<!-- /section -->`. */
export function withSection(document: string, section: Section, text: string): string {
  const [start, end] = [`<!-- ${section} -->`, `<!-- /${section} -->`];
  const [from, to] = [document.indexOf(start), document.indexOf(end)];
  if (from < 0 || to < from) {
    throw new HcinferError(
      "environment",
      `RESULTS.md has no part between ${start} and ${end}: put the markers back`,
    );
  }
  return `${document.slice(0, from + start.length)}\n${text.trim()}\n${document.slice(to)}`;
}

export function writeSection(file: string, section: Section, text: string): void {
  writeFileSync(file, withSection(readFileSync(file, "utf8"), section, text));
}
