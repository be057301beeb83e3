/**
 * Speed beside llama.cpp: same shape, same bits, same number of threads, in one run, the two in turn. Parts:
 *
 *   deno task bench [machine] [decode] [load] [prefill] [formats] [corrections] [gather] [choice] [sequences]
 *     [serving] [memory] [--threads 1,2] [--repeats 5] [--peer-bench <llama-bench>] [--model <folder>]
 *
 * Without parts all of them run. Medians, with the least and the most in brackets. --peer-bench adds another llama.cpp, by its
 * llama-bench and that one's own options ("ik/bin/llama-bench -rtr 1"); --model is what `choice` compiles.
 */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { cpus } from "node:os";
import { basename, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { physicalCores } from "../../cli/arguments.ts";
import { measureSpeed, median } from "../../cli/bench.ts";
import { OpenModel } from "../../cli/opening.ts";
import { figures } from "../../cli/summary.ts";
import { bytesText, secondsText, table } from "../../cli/terminal.ts";
import { COMPILE_DEFAULTS, compileModel, type CompileOptions } from "../../compiler/compile.ts";
import { genericProfile } from "../../compiler/profile.ts";
import { build } from "../../ffi/build.ts";
import { memoryBandwidth } from "../../ffi/measure.ts";
import type { CorrectionMode } from "../../runtime/executor.ts";
import { writeCheckpoint } from "./checkpoint.ts";
import { writeGguf } from "./gguf.ts";
import { choiceRows } from "./choice.ts";
import { Llama } from "./llama.ts";
import { gatherRows } from "./gather.ts";
import { BusyLoop } from "./load.ts";
import { PeerBench } from "./peer.ts";
import { MOST_SEQUENCES, sequenceRows } from "./sequences.ts";
import { servingRows, waitingTimes } from "./serving.ts";
import { cacheFolder } from "./shape.ts";
import { spread } from "./spread.ts";

const PARTS = [
  "machine",
  "decode",
  "load",
  "prefill",
  "formats",
  "corrections",
  "gather",
  "choice",
  "sequences",
  "serving",
  "memory",
] as const;
type Part = typeof PARTS[number];

const PROMPT = 512;
const TOKENS = 128;
/** Decoding is measured after a short prompt, as llama.cpp's is. */
const DECODE_PROMPT = 16;

const { values, positionals } = parseArgs({
  args: process.argv.slice(2).filter((argument) => argument !== "--"),
  allowPositionals: true,
  options: {
    threads: { type: "string", default: [...new Set([1, physicalCores()])].join(",") },
    repeats: { type: "string", default: "5" },
    "peer-bench": { type: "string" },
    model: {
      type: "string",
      default: fileURLToPath(new URL("../../examples/models/tiny-dense", import.meta.url)),
    },
  },
});
const unknown = positionals.find((name) => !PARTS.some((part) => part === name));
if (unknown !== undefined) {
  process.stderr.write(`error: ${unknown} is no part; the parts are ${PARTS.join(", ")}\n`);
  process.exit(2);
}
const threadCounts = values.threads.split(",").map(Number);
const repeats = Number(values.repeats);
const other = values["peer-bench"] === undefined ? undefined : new PeerBench(values["peer-bench"]);

function wanted(part: Part): boolean {
  return positionals.length === 0 || positionals.includes(part);
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

function note(text: string): void {
  process.stderr.write(`${text}\n`);
}

function checkpoint(): string {
  const folder = join(cacheFolder(), "qwen3-0.6b-shape");
  if (!existsSync(folder)) {
    note(`writing ${folder} (0.9 GB)`);
    writeCheckpoint(folder);
  }
  return folder;
}

function gguf(): string {
  const path = join(cacheFolder(), "qwen3-0.6b-shape.q4_0.gguf");
  if (!existsSync(path)) {
    note(`writing ${path} (0.3 GB)`);
    writeGguf(path);
  }
  return path;
}

/** A bundle with a head of 4 bits, as Q4_0 has; compiled anew in every run, because the compiler changes. */
const bundles = new Map<string, { path: string; seconds: number }>();
async function bundle(weights: CompileOptions["weights"], correct: CompileOptions["correct"]) {
  const key = `${weights}-${correct}`;
  const known = bundles.get(key);
  if (known) return known;
  const path = join(cacheFolder(), "bundles", key);
  note(`compiling ${weights}, corrections ${correct}`);
  const { seconds } = await compileModel({
    ...COMPILE_DEFAULTS,
    model: checkpoint(),
    output: path,
    weights,
    group: 64,
    head: "q4",
    correct,
    threads: physicalCores(),
    profile: genericProfile(physicalCores()),
  });
  const made = { path, seconds };
  bundles.set(key, made);
  return made;
}

function open(path: string, threads: number, corrections: CorrectionMode = "off"): OpenModel {
  return OpenModel.open(path, { device: "cpu", threads, corrections, contextLength: PROMPT + TOKENS + 16 });
}

/** Bytes of weights (and corrections) that one decoded token reads. */
function bytesPerToken(model: OpenModel, corrections: CorrectionMode): number {
  const { backboneBytes, headBytes, correctionBytesRead } = figures(model.bundle.plan);
  return backboneBytes + headBytes + (corrections === "off" ? 0 : correctionBytesRead);
}

function threadText(count: number): string {
  return count === 1 ? "1 thread" : `${count} threads`;
}

function machine(): void {
  say(`machine: ${cpus()[0]?.model.trim()}, ${physicalCores()} cores`);
  const rows = threadCounts.map((threads) => [
    `${threads}`,
    `${(memoryBandwidth("read", threads) / 1e9).toFixed(1)} GB/s`,
    `${(memoryBandwidth("copy", threads) / 1e9).toFixed(1)} GB/s`,
  ]);
  say(`${table(["threads", "read", "copy"], rows)}\n`);
}

/** Decoding beside a program that keeps a core busy: threads that lose their core are shed (ffi/simd/shedding.h). */
async function load(): Promise<void> {
  const { path } = await bundle("q4", "none");
  using llama = new Llama(gguf());
  const found = threadCounts.map((threads) => ({ threads, ours: [] as number[], theirs: [] as number[] }));
  for (let repeat = 0; repeat <= repeats; repeat++) {
    for (const { threads, ours, theirs } of found) {
      note(`decode beside a busy core, ${threads} threads, repeat ${repeat}`);
      using model = open(path, threads);
      using _busy = new BusyLoop(0);
      const own = measureSpeed(model, DECODE_PROMPT, TOKENS);
      const peer = await llama.measure(DECODE_PROMPT, TOKENS, threads);
      if (repeat === 0) continue;
      ours.push(own.decode);
      theirs.push(peer.decode);
    }
  }
  const best = Math.max(...found.map(({ theirs }) => median(theirs)));
  const rows = found.map(({ threads, ours, theirs }) => [
    `${threads}`,
    spread(ours),
    spread(theirs),
    `${(median(ours) / best).toFixed(2)}x`,
  ]);
  say("the same beside a busy loop on one core");
  say(`${table(["threads", "hcinfer", "llama.cpp", "ratio to its best"], rows)}\n`);
}

const PEER_COLUMNS = other ? ["--peer-bench", "ratio"] : [];

/** Columns of the peer that was given. */
function beside(ours: readonly number[], others: readonly number[]): string[] {
  return other ? [spread(others), `${(median(ours) / median(others)).toFixed(2)}x`] : [];
}

async function decode(): Promise<void> {
  const { path } = await bundle("q4", "none");
  using llama = new Llama(gguf());
  const rows: string[][] = [];
  const best = { ours: 0, theirs: 0, others: 0 };
  for (const threads of threadCounts) {
    using model = open(path, threads);
    const [ours, theirs, theirWall, others]: [number[], number[], number[], number[]] = [[], [], [], []];
    for (let repeat = 0; repeat <= repeats; repeat++) {
      note(`decode, ${threads} threads, repeat ${repeat}`);
      const own = measureSpeed(model, DECODE_PROMPT, TOKENS);
      const peer = await llama.measure(DECODE_PROMPT, TOKENS, threads);
      const fork = other?.measure(gguf(), DECODE_PROMPT, TOKENS, threads);
      if (repeat === 0) continue;
      if (fork) others.push(fork.decode);
      ours.push(own.decode);
      theirs.push(peer.decode);
      theirWall.push(peer.wallDecode);
    }
    const bandwidth = memoryBandwidth("read", threads);
    const achieved = bytesPerToken(model, "off") * median(ours);
    rows.push([
      `${threads}`,
      spread(ours),
      spread(theirs),
      spread(theirWall),
      `${(median(ours) / median(theirs)).toFixed(2)}x`,
      ...beside(ours, others),
      `${(achieved / 1e9).toFixed(1)} of ${(bandwidth / 1e9).toFixed(1)}`,
    ]);
    best.ours = Math.max(best.ours, median(ours));
    best.theirs = Math.max(best.theirs, median(theirs));
    if (other) best.others = Math.max(best.others, median(others));
  }
  say(
    `decode, q4 in groups of 64 (4.5 bits a weight, as Q4_0) beside Q4_0, ${TOKENS} tokens, tokens per second`,
  );
  say(
    table(
      ["threads", "hcinfer", "llama.cpp", "(wall clock)", "ratio", ...PEER_COLUMNS, "GB/s of read"],
      rows,
    ),
  );
  const otherRatio = other ? `, of --peer-bench ${(best.ours / best.others).toFixed(2)}x` : "";
  say(`at each one's best number of threads: ${(best.ours / best.theirs).toFixed(2)}x${otherRatio}\n`);
}

async function prefill(): Promise<void> {
  const { path } = await bundle("q4", "none");
  using llama = new Llama(gguf());
  const rows: string[][] = [];
  for (const threads of threadCounts) {
    using model = open(path, threads);
    const [ours, theirs, others]: [number[], number[], number[]] = [[], [], []];
    for (let repeat = 0; repeat <= repeats; repeat++) {
      note(`prefill, ${threads} threads, repeat ${repeat}`);
      const own = measureSpeed(model, PROMPT, 1);
      const peer = await llama.measure(PROMPT, 1, threads);
      const fork = other?.measure(gguf(), PROMPT, 1, threads);
      if (repeat === 0) continue;
      if (fork) others.push(fork.prefill);
      ours.push(own.prefill);
      theirs.push(peer.prefill);
    }
    const ratio = `${(median(ours) / median(theirs)).toFixed(2)}x`;
    rows.push([`${threads}`, spread(ours), spread(theirs), ratio, ...beside(ours, others)]);
  }
  say(`prompt of ${PROMPT} tokens, q4 beside Q4_0, tokens per second`);
  say(`${table(["threads", "hcinfer", "llama.cpp", "ratio", ...PEER_COLUMNS], rows)}\n`);
}

/** Decode speed of several set-ups in turn, against the first. */
async function compareDecode(
  title: string,
  setups: readonly {
    readonly name: string;
    readonly weights: CompileOptions["weights"];
    readonly correct: CompileOptions["correct"];
    readonly corrections: CorrectionMode;
  }[],
): Promise<void> {
  const threads = physicalCores();
  const models: OpenModel[] = [];
  try {
    for (const setup of setups) {
      models.push(open((await bundle(setup.weights, setup.correct)).path, threads, setup.corrections));
    }
    const found = setups.map((): number[] => []);
    for (let repeat = 0; repeat <= repeats; repeat++) {
      note(`${title}, repeat ${repeat}`);
      models.forEach((model, i) => {
        const { decode } = measureSpeed(model, DECODE_PROMPT, TOKENS);
        if (repeat > 0) found[i]!.push(decode);
      });
    }
    const base = median(found[0]!);
    const rows = setups.map(({ name, corrections }, i) => {
      const bytes = bytesPerToken(models[i]!, corrections);
      return [
        name,
        spread(found[i]!),
        `${(median(found[i]!) / base).toFixed(2)}x`,
        bytesText(bytes),
        `${(bytes * median(found[i]!) / 1e9).toFixed(1)} GB/s`,
      ];
    });
    say(`${title}, ${threads} threads, tokens per second`);
    say(`${table(["", "decode", "ratio", "bytes/token", "reads"], rows)}\n`);
  } finally {
    for (const model of models) model[Symbol.dispose]();
  }
}

/** Several texts at once, one token of each a step. */
async function sequences(): Promise<void> {
  const threads = physicalCores();
  using model = OpenModel.open((await bundle("q4", "none")).path, {
    device: "cpu",
    threads,
    corrections: "off",
    contextLength: PROMPT,
    cachePositions: PROMPT * MOST_SEQUENCES,
  });
  const rows = sequenceRows(model.executor, repeats, note);
  say(`decoding several sequences in one step, q4, ${threads} threads, tokens per second of all`);
  say(`${table(["sequences", "decode", "ratio"], rows)}\n`);
}

/** Several requests at once, as `hcinfer serve` batches them. */
async function serving(): Promise<void> {
  const threads = physicalCores();
  using model = OpenModel.open((await bundle("q4", "none")).path, {
    device: "cpu",
    threads,
    corrections: "off",
    contextLength: 4096,
    cachePositions: 8192,
  });
  const rows = await servingRows(model.executor, repeats, note);
  say(
    `answering several requests at once, q4, ${threads} threads, tokens per second of all, prompts included`,
  );
  say(table(["streams", "tokens per second", "ratio"], rows));
  const { step, chunk, wait } = await waitingTimes(model.executor, repeats);
  say(
    `first token of a short request beside a prompt of 2000: ${wait.toFixed(0)} ms; a chunk of 256 takes ` +
      `${chunk.toFixed(0)} ms, a decode step ${step.toFixed(1)} ms\n`,
  );
}

/** Load time and memory in a process of its own: `bench.ts memory-child <bundle>` prints them. */
async function memory(): Promise<void> {
  const { path, seconds } = await bundle("q4", "none");
  const child = new URL("./memory_child.ts", import.meta.url).pathname;
  const out = execFileSync("deno", ["run", "-A", child, path, `${physicalCores()}`], { encoding: "utf8" });
  const found = JSON.parse(out) as {
    firstToken: number;
    start: number;
    resident: number;
    before: number;
    expected: number;
  };
  say("loading the q4 bundle, file cached");
  say(
    `${
      table(["", ""], [
        ["open and first token of a prompt of 16", secondsText(found.firstToken)],
        ["resident memory of it", bytesText(found.resident - found.before)],
        ["weights and key-value cache", bytesText(found.expected)],
        ["over that", `${(((found.resident - found.before) / found.expected - 1) * 100).toFixed(0)} %`],
        ["compiling, corrections none", secondsText(seconds)],
      ])
    }\n`,
  );
}

await build();
if (wanted("machine")) machine();
if (wanted("decode")) await decode();
if (wanted("load")) await load();
if (wanted("prefill")) await prefill();
if (wanted("formats")) {
  const setup = (weights: CompileOptions["weights"]) =>
    ({ name: weights, weights, correct: "none", corrections: "off" }) as const;
  const kinds = ["q4", "q4s", "q3", "q3s", "q2", "q2s"] as const;
  await compareDecode("formats without corrections", kinds.map(setup));
}
if (wanted("corrections")) {
  await compareDecode("q3 with corrections of 10 % of the bytes", [
    { name: "off", weights: "q3", correct: "sparse", corrections: "off" },
    { name: "rows in line", weights: "q3", correct: "sparse", corrections: "inline" },
    { name: "rows async", weights: "q3", correct: "sparse", corrections: "async" },
    { name: "factors in line", weights: "q3", correct: "low_rank", corrections: "inline" },
  ]);
}
if (wanted("gather")) {
  say("rows chosen at random, a tenth of a window's, GB/s");
  const columns = ["bytes of a row", ...threadCounts.flatMap((n) => [threadText(n), "share of a stream"])];
  const found = threadCounts.map((threads) => gatherRows(threads, repeats));
  const rows = found[0]!.map(([bytes], row) => [bytes!, ...found.flatMap((of) => of[row]!.slice(1))]);
  say(`${table(columns, rows)}\n`);
}
if (wanted("choice")) {
  const threads = physicalCores(), { model } = values;
  const options = { model, threads, repeats, prompt: DECODE_PROMPT, tokens: TOKENS, note };
  say(`q3s fitted, rows of 10 % of the bytes, ${basename(model)}, decoding a text, ${threads} threads`);
  say(
    `${table(["", "tokens per second", "ratio", "corrections/token"], await choiceRows(options))}\n`,
  );
}
if (wanted("sequences")) await sequences();
if (wanted("serving")) await serving();
if (wanted("memory")) await memory();
