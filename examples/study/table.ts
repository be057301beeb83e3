/** The study's table, as GitHub's Markdown. */
import { parse } from "node:path";
import {
  bytesRead,
  isMeasured,
  type Measured,
  type MeasuredRow,
  paretoFront,
  type Row,
  type Study,
} from "./rows.ts";

export function markdownTable(study: Study): string {
  const measured = study.rows.filter(isMeasured);
  const texts = measured[0]?.result.texts ?? [];
  const front = new Set(paretoFront(measured, 0));
  const losses = texts.flatMap(({ text }) => [`KL, ${parse(text).name}`, "perplexity", "top-1, %"]);
  const head = ["", "MB a token", "bits a weight", ...losses];
  const rows = measured.map((row) => {
    const { result } = row;
    const name = front.has(row) ? `**${row.name}**` : row.name;
    const losses = result.texts.flatMap(({ kl, perplexity, top1 }) => [
      kl === null ? "-" : plusMinus(kl, significant),
      plusMinus(perplexity, (value) => value.toFixed(2)),
      top1 === null ? "-" : plusMinus(top1, (value) => (100 * value).toFixed(1)),
    ]);
    return [name, (bytesRead(result) / 1e6).toFixed(2), result.bitsPerWeight.toFixed(2), ...losses];
  });
  return [
    line(head),
    line(head.map((_, column) => column === 0 ? "---" : "---:")),
    ...rows.map(line),
    "",
    caption(study),
    ...llamaFormats(measured),
    ...failures(study.rows),
  ].join("\n");
}

/** The table with the command lines of its rows folded away beneath it. */
export function markdownPage(study: Study): string {
  const commands = study.rows.flatMap(({ name, commands }) => [`# ${name}`, ...commands]);
  return `# ${study.model}

![KL divergence from bf16 against bytes read per token](kl.svg)

${markdownTable(study)}

<details>
<summary>Command lines</summary>

\`\`\`sh
${[...study.preparation, ...commands].join("\n")}
\`\`\`

</details>
`;
}

function caption({ rows, window }: Study): string {
  const texts = rows.find(isMeasured)?.result.texts ?? [];
  const windows = texts.map(({ text, tokens }) => `${Math.ceil(tokens / (window - 1))} windows of ${text}`);
  return "*MB a token*: bytes read of the layers' weights and corrections, in the mean over the calibration's text. KL from bf16 in " +
    `nats per token, top-1: agreement with bf16, of ${
      windows.join(", ")
    }, ${window} tokens each, corrected as in decoding; ` +
    `± one standard error over windows. Bold: no row reads less and diverges less on ${
      texts[0]?.text ?? "the text"
    }.`;
}

/** What llama.cpp's types of models are made of. */
function llamaFormats(rows: readonly MeasuredRow[]): string[] {
  const made = rows.flatMap(({ name, result: { llamaFormats } }) =>
    llamaFormats === undefined ? [] : [`- ${name}: ${llamaFormats}`]
  );
  if (made.length === 0) return [];
  const how =
    "Weights and bytes of llama.cpp's rows are those of its own quantiser, without an importance matrix; they are computed " +
    "here, in bf16, with embedding and output head as in the other rows. Formats of their matrices:";
  return ["", how, "", ...made];
}

function failures(rows: readonly Row[]): string[] {
  const failed = rows.flatMap((row) => isMeasured(row) ? [] : [`- ${row.name}: ${escaped(row.error)}`]);
  return failed.length === 0 ? [] : ["", "Not measured:", "", ...failed];
}

function plusMinus({ mean, error }: Measured, text: (value: number, like: number) => string): string {
  return error === null ? text(mean, mean) : `${text(mean, mean)} ± ${text(error, mean)}`;
}

/** `value` with as many decimals as three digits of `like` need. */
function significant(value: number, like: number): string {
  const decimals = Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(like) || 1))));
  return value.toFixed(decimals);
}

function line(cells: readonly string[]): string {
  return `| ${cells.map(escaped).join(" | ")} |`;
}

/** What Markdown's tables, or a file's name in them, would take for their own. */
function escaped(text: string): string {
  return text.replaceAll("|", "\\|").replaceAll("\n", " ");
}
