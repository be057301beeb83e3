/**
 * The study: what every way to compress a model loses, and how many bytes it reads for it. Writes study.json (all numbers
 * with their command lines), table.md and a figure for each text. Until it has all rows, they lie in <work>/unfinished.
 *
 *   deno task study [--model folder] [--text file ...] [--list full|short] [--only regex] [--out folder]
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { join, relative, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { threadsOption, whole } from "../../cli/arguments.ts";
import { endWithReader, reportFailure } from "../../cli/failure.ts";
import { abortable } from "../../cli/interrupted.ts";
import { printable, secondsText } from "../../cli/terminal.ts";
import { build } from "../../ffi/build.ts";
import { figures } from "./chart.ts";
import { configurationsOf, type List } from "./configurations.ts";
import { Measurements, VERSION, WINDOW } from "./measure.ts";
import { bytesRead, isMeasured, type Row, type Study } from "./rows.ts";
import { markdownPage } from "./table.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const TEXTS = ["examples/models/heldout.txt", "examples/models/far.txt"];

interface Options {
  readonly model: string;
  readonly text?: readonly string[];
  readonly list: List;
  readonly only?: RegExp;
  readonly out?: string;
  readonly work: string;
  readonly windows: number;
  readonly threads: number;
}

/** Commands run in the repository's root: what lies in it is named from there, what does not by its full path. */
function fromRoot(path: string): string {
  const inside = relative(ROOT, resolve(path));
  return inside.startsWith("..") ? resolve(path) : inside;
}

async function study(options: Options): Promise<void> {
  const started = performance.now();
  const texts = options.text?.map(fromRoot) ?? TEXTS;
  const model = fromRoot(options.model), work = fromRoot(options.work);
  const out = options.out === undefined ? undefined : resolve(options.out);
  process.chdir(ROOT);
  await build();
  await abortable(async (signal) => {
    const measurements = new Measurements({ ...options, model, texts, work, signal });
    // Some of the rows do not replace all of them, unless that is asked for.
    const standard = options.only === undefined ? join(ROOT, "examples/study/results") : join(work, "some");
    const folder = out ?? join(standard, measurements.model);
    // The rows so far lie here: a study that is interrupted leaves the last whole one alone.
    const unfinished = join(work, "unfinished", measurements.model);
    const configurations = configurationsOf(options.list, options.only);
    await measurements.prepare(configurations);
    const { model: name, checksums, preparation } = measurements;
    const rows: Row[] = [];
    const found: Study = { hcinfer: VERSION, model: name, checksums, window: WINDOW, preparation, rows };
    const finish = async (row: Row) => {
      rows.push(row);
      say(`${rows.length} of ${configurations.length + 1}  ${summary(row)}`);
      await write(unfinished, found);
    };
    await finish(await measurements.reference());
    for (const configuration of configurations) await finish(await measurements.measure(configuration));
    await write(folder, found);
    rmSync(unfinished, { recursive: true });
    say(`wrote ${fromRoot(folder)} in ${secondsText((performance.now() - started) / 1000)}`);
  });
}

async function write(folder: string, study: Study): Promise<void> {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "study.json"), `${JSON.stringify(study, null, 1)}\n`);
  writeFileSync(join(folder, "table.md"), markdownPage(study));
  for (const { file, svg } of await figures(study)) writeFileSync(join(folder, file), svg);
}

function summary(row: Row): string {
  if (!isMeasured(row)) return `${row.name}: failed: ${row.error}`;
  const losses = row.result.texts.map(({ text, kl, perplexity }) =>
    kl === null
      ? `perplexity ${perplexity.mean.toFixed(2)} (${text})`
      : `KL ${kl.mean.toPrecision(3)} (${text})`
  );
  return `${row.name}: ${(bytesRead(row.result) / 1e6).toFixed(2)} MB, ${losses.join(", ")}`;
}

function say(text: string): void {
  process.stdout.write(`${printable(text)}\n`);
}

function regex(text: string): RegExp {
  try {
    return new RegExp(text);
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : "Expected a regular expression.");
  }
}

endWithReader();
try {
  const command = new Command("study").exitOverride()
    .description("Bytes read per token against the divergence from bf16, for every way to compress a model.")
    .option("--model <folder>", "a Hugging Face model", join(ROOT, "examples/models/tiny-dense"))
    .addOption(
      new Option(
        "--text <file>",
        "UTF-8 text to evaluate; repeat it for several (default: heldout.txt, far.txt)",
      )
        .argParser((file: string, before: readonly string[] = []) => [...before, file]),
    )
    .addOption(new Option("--list <list>", "configurations").choices(["full", "short"]).default("full"))
    .addOption(
      new Option("--only <regex>", "of the list, those whose names match").argParser(regex),
    )
    .option(
      "--out <folder>",
      "for the table and figures (default: examples/study/results/<model>; with --only in --work)",
    )
    .option("--work <folder>", "for bundles, statistics and finished results", join(ROOT, "bundles/study"))
    .addOption(new Option("--windows <n>", "most windows of a text").argParser(whole()).default(16))
    .addOption(threadsOption())
    .option("--debug", "print stack traces of errors")
    .action(study);
  await command.parseAsync();
} catch (error) {
  // Commander has already written its message, or the help that was asked for.
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2;
  else process.exitCode = reportFailure(error, process.argv.includes("--debug"));
}
