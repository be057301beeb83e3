/**
 * Runs a target on changed inputs in a child process and watches it. Every case must end with success or a typed error;
 * what else can happen, a crash, an error of another type, a case without end, a gigabyte of memory, is a finding. Cases
 * depend on the seed and their number alone, so a finding is repeated with --seed and --case.
 *
 *   deno run -A tests/fuzz/<target>.ts [--seconds 60] [--seed 1] [--case N]
 */
import { mkdtempSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { HcinferError } from "../../compiler/errors.ts";
import { Random } from "./random.ts";

export interface Target {
  /** Makes what the cases start from, once. */
  readonly prepare: (folder: string) => Promise<void>;
  /** Reads what `prepare` made, in the child. */
  readonly load: (folder: string) => Case;
}

/** Makes a changed input, tells `note` what was changed, and runs it. */
export type Case = (random: Random, note: (change: string) => void) => void | Promise<void>;

const CASE_SECONDS = 20;
const MOST_BYTES = 2 ** 30;
const PAGE_BYTES = 4096;
const STARTS = "case ", CHANGED = "change ", ENDED = "end ";

/** The whole program of a target's file. */
export async function main(file: string, target: Target): Promise<void> {
  const { values } = parseArgs({
    options: {
      seconds: { type: "string", default: "60" },
      seed: { type: "string", default: "1" },
      case: { type: "string" },
      child: { type: "string" },
    },
  });
  const seed = Number(values.seed);
  if (values.child !== undefined) {
    return await runCases(target, values.child, seed, Number(values.case ?? 0), Infinity);
  }
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-fuzz-"));
  try {
    await target.prepare(folder);
    if (values.case !== undefined) {
      return await runCases(target, folder, seed, Number(values.case), 1);
    }
    process.exitCode = await new Watch(file, folder, seed, Number(values.seconds)).run() > 0 ? 1 : 0;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** In the child: cases from `first` on, told line by line, so that the parent knows which one it died of. */
async function runCases(target: Target, folder: string, seed: number, first: number, count: number) {
  const tell = (line: string) => writeSync(1, `${line.replaceAll("\n", " ")}\n`);
  const run = target.load(folder);
  for (let number = first; number < first + count; number++) {
    tell(`${STARTS}${number}`);
    let outcome = "ran";
    try {
      await run(new Random(Math.imul(seed, 0x9e3779b1) + number), (change) => tell(`${CHANGED}${change}`));
    } catch (error) {
      if (!(error instanceof HcinferError)) throw error;
      outcome = `${error.kind}: ${error.message.replaceAll(folder, "")}`;
    }
    tell(`${ENDED}${outcome}`);
  }
}

interface Finding {
  readonly kind: "crash" | "untyped error" | "no end" | "too much memory";
  readonly number: number;
  readonly changes: readonly string[];
  readonly text: string;
}

/** In the parent: one child after the other until the time is up. */
class Watch {
  readonly #findings: Finding[] = [];
  readonly #outcomes = new Map<string, number>();
  #number = 0;
  #changes: string[] = [];
  #caseStarted = 0;
  #cases = 0;
  #slowest = { seconds: 0, number: 0, changes: "" };

  constructor(
    readonly file: string,
    readonly folder: string,
    readonly seed: number,
    readonly seconds: number,
  ) {}

  async run(): Promise<number> {
    const end = performance.now() + this.seconds * 1000;
    console.log(`seed ${this.seed}, ${this.seconds} s`);
    while (performance.now() < end) {
      await this.#child(end);
      this.#number++;
    }
    this.#report();
    return this.#findings.length;
  }

  async #child(end: number): Promise<void> {
    const args = ["run", "-A", "--no-check", this.file, "--child", this.folder, "--seed", `${this.seed}`];
    const child = new Deno.Command(Deno.execPath(), {
      args: [...args, "--case", `${this.#number}`],
      env: { NO_COLOR: "1" },
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#caseStarted = performance.now();
    let killed: Finding["kind"] | "time is up" | undefined;
    const watch = setInterval(() => {
      const now = performance.now();
      if (killed !== undefined) return;
      if (now > this.#caseStarted + CASE_SECONDS * 1000) killed = "no end";
      else if (residentBytes(child.pid) > MOST_BYTES) killed = "too much memory";
      else if (now > end) killed = "time is up";
      if (killed !== undefined) child.kill("SIGKILL");
    }, 20);
    const [, stderr, { code, signal }] = await Promise.all([
      this.#follow(child.stdout),
      new Response(child.stderr).text(),
      child.status,
    ]);
    clearInterval(watch);
    if (killed === "time is up") return;
    // An exception that nobody caught ends Deno with 1; a sanitizer's report too.
    const isException = signal === null && code === 1 && !stderr.includes("Sanitizer");
    const kind = killed ?? (isException ? "untyped error" : "crash");
    const text = `${signal ?? `exit code ${code}`}\n${stderr.slice(0, 3000)}`;
    this.#findings.push({ kind, number: this.#number, changes: this.#changes, text });
    console.log(`case ${this.#number}: ${kind}: ${this.#changes.join("; ")}`);
  }

  async #follow(stdout: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<void> {
    let rest = "";
    for await (const text of stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.#line(line);
    }
  }

  #line(line: string): void {
    if (line.startsWith(STARTS)) {
      this.#number = Number(line.slice(STARTS.length));
      this.#changes = [];
      this.#caseStarted = performance.now();
      this.#cases++;
    } else if (line.startsWith(CHANGED)) {
      this.#changes.push(line.slice(CHANGED.length));
    } else if (line.startsWith(ENDED)) {
      const seconds = (performance.now() - this.#caseStarted) / 1000;
      if (seconds > this.#slowest.seconds) {
        this.#slowest = { seconds, number: this.#number, changes: this.#changes.join("; ") };
      }
      const outcome = line.slice(ENDED.length).replaceAll(/\d+/g, "#").slice(0, 100);
      this.#outcomes.set(outcome, (this.#outcomes.get(outcome) ?? 0) + 1);
    }
  }

  #report(): void {
    const most = [...this.#outcomes].sort(([, a], [, b]) => b - a);
    console.log(`\n${this.#cases} cases, ${most.length} kinds of outcome:`);
    for (const [outcome, count] of most.slice(0, 25)) console.log(`${`${count}`.padStart(7)} ${outcome}`);
    const { seconds, number, changes } = this.#slowest;
    console.log(`slowest: ${seconds.toFixed(1)} s, case ${number}: ${changes}`);
    const kinds = new Map<string, Finding[]>();
    for (const finding of this.#findings) {
      const place = /^\s+at (?!node:|ext:).*$|^.*Sanitizer.*$|^.*runtime error.*$/m.exec(finding.text)?.[0];
      const key = `${finding.kind}: ${finding.text.split("\n", 1)[0]} ${(place ?? "").trim()}`
        .replaceAll(/0x[0-9a-f]+|==\d+==/g, "#");
      kinds.set(key, [...kinds.get(key) ?? [], finding]);
    }
    console.log(`\n${this.#findings.length} findings of ${kinds.size} kinds`);
    for (const [key, [first, ...more]] of kinds) {
      if (first === undefined) continue;
      console.log(`\n${key}\n  ${1 + more.length} times, first: --seed ${this.seed} --case ${first.number}`);
      console.log(`  ${first.changes.join("\n  ")}\n  ${first.text.slice(0, 1200).replaceAll("\n", "\n  ")}`);
    }
  }
}

/** 0 where the system does not tell. */
function residentBytes(pid: number): number {
  try {
    return PAGE_BYTES * Number(readFileSync(`/proc/${pid}/statm`, "utf8").split(" ")[1]);
  } catch {
    return 0;
  }
}
