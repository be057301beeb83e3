import assert from "node:assert/strict";
import { appendFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { temporary } from "../../tests/command_line.ts";
import { refusal } from "../../tests/fixtures/errors.ts";
import { writeLetterModel } from "../../tests/fixtures/letter_model.ts";
import { type Checkpoint, openCheckpoint } from "../weights/checkpoint.ts";
import { fileChecksum } from "../weights/checksum.ts";
import { calibrationGraph } from "./calibrate.ts";
import {
  checkStatistics,
  checkWindows,
  type FileTensor,
  parseStatistics,
  readStatistics,
  type Statistics,
  statisticsBytes,
  tensorFile,
  tokenizerChecksum,
  windowSizes,
} from "./statistics.ts";

const WEIGHTS = "model.safetensors";

/** Made up, but of the checkpoint at `folder`. */
async function someStatistics(checkpoint: Checkpoint): Promise<Statistics> {
  const sizes = windowSizes(await calibrationGraph(checkpoint));
  const numbers = (length: number) => Float32Array.from({ length }, (_, i) => i / 7);
  return {
    text: { tokens: Int32Array.from({ length: 24 }, (_, i) => i), window: 8 },
    windows: new Map(
      [...sizes].map(([window, { outputs, inputs }]) => [
        window,
        { fisher: numbers(outputs), inputSquare: numbers(inputs), inputMax: numbers(inputs) },
      ]),
    ),
    provenance: {
      format: "hcinfer statistics",
      version: 1,
      files: { [WEIGHTS]: fileChecksum(checkpoint.weightFiles[0]!, 1) },
      tokenizer: tokenizerChecksum(checkpoint),
      texts: [{ name: "a.txt", sha256: "0".repeat(64) }],
      seed: 1,
      measuredTokens: 16,
    },
  };
}

async function withStatistics(
  test: (statistics: Statistics, folder: string) => void | Promise<void>,
): Promise<void> {
  using folder = temporary();
  const model = join(folder.path, "model");
  writeLetterModel(model);
  let statistics: Statistics;
  {
    using checkpoint = openCheckpoint(model);
    statistics = await someStatistics(checkpoint);
  }
  await test(statistics, model);
}

function joined(pieces: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(pieces.flatMap((piece) => [...piece]));
}

Deno.test("statistics are read as they were written", () =>
  withStatistics((statistics, folder) => {
    const bytes = joined(statisticsBytes(statistics));
    const file = join(folder, "stats.safetensors");
    writeFileSync(file, bytes);
    assert.deepEqual(readStatistics(file), statistics);
    assert.deepEqual(joined(statisticsBytes(readStatistics(file))), bytes);
    // A part of a Buffer, as what Node reads may be.
    const whole = Buffer.concat([new Uint8Array(12), bytes, new Uint8Array(20)]);
    const part = parseStatistics(whole.subarray(12, 12 + bytes.length), file);
    assert.ok(Buffer.concat(statisticsBytes(part)).equals(bytes));
  }));

Deno.test("a file of statistics that does not hold together is refused", () =>
  withStatistics((statistics) => {
    const bytes = joined(statisticsBytes(statistics));
    const parse = (bytes: Uint8Array) => () => parseStatistics(bytes, "stats");
    assert.throws(parse(new Uint8Array()), refusal("input", /stats is not a sound safetensors file/));
    for (const length of [7, 100, bytes.length - 1]) {
      assert.throws(
        parse(bytes.subarray(0, length)),
        refusal("input", /stats is not a sound safetensors file/),
      );
    }
    const pointer = new TextEncoder().encode("version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    assert.throws(parse(pointer), refusal("input", /pointer of Git LFS.*git lfs pull/));

    const { provenance } = statistics;
    const tokens: FileTensor = {
      name: "tokens",
      dtype: "I32",
      shape: [3, 8],
      values: statistics.text.tokens,
    };
    const floats = (name: string, ...values: number[]): FileTensor => (
      { name, dtype: "F32", shape: [values.length], values: Float32Array.from(values) }
    );
    const window = [floats("0.o.fisher", 1, 2), floats("0.o.input_square", 1), floats("0.o.input_max", 1)];
    const written = (tensors: readonly FileTensor[], said: unknown = provenance) =>
      parse(
        joined(tensorFile(tensors, { statistics: typeof said === "string" ? said : JSON.stringify(said) })),
      );
    assert.doesNotThrow(written([tokens, ...window]));
    assert.throws(parse(joined(tensorFile([tokens], {}))), refusal("input", /not a file of statistics/));
    const saying = [
      ["{", /not say in JSON/],
      [{ ...provenance, version: 2 }, /version/],
      [{ ...provenance, more: 1 }, /more/],
      [{ ...provenance, files: { "model.safetensors": "x" } }, /checksum of 16/],
      [{ ...provenance, measuredTokens: 15 }, /measured 15 tokens, of 24 in windows of 8/],
      [{ ...provenance, measuredTokens: 32 }, /measured 32 tokens/],
    ] as const;
    for (const [said, message] of saying) {
      assert.throws(written([tokens, ...window], said), refusal("input", message));
    }
    const flat: FileTensor = { ...tokens, shape: [24] };
    const negative: FileTensor = {
      ...tokens,
      values: tokens.values.map((_, i) => -i) as Int32Array<ArrayBuffer>,
    };
    const having = [
      [window, /has nothing as tokens/],
      [[flat, ...window], /has I32 \[24\] as tokens/],
      [[negative, ...window], /negative token/],
      [[tokens], /has no window/],
      [[tokens, ...window.slice(1)], /lacks the tensor "0.o.fisher"/],
      [[tokens, ...window, floats("0.o.more", 1)], /has a tensor "0.o.more"/],
      [[tokens, ...window, floats("more", 1)], /has a tensor "more"/],
      [[tokens, ...window.slice(0, 2), floats("0.o.input_max", 1, 2)], /1 mean squares and 2 maxima/],
      [[tokens, floats("0.o.fisher", 1, NaN), ...window.slice(1)], /has NaN in "0.o.fisher" at 1/],
      [[tokens, floats("0.o.fisher", -1), ...window.slice(1)], /has -1 in "0.o.fisher"/],
      [[tokens, { ...tokens, name: "0.o.fisher" }, ...window.slice(1)], /I32 \[3,8\] as "0.o.fisher"/],
    ] as const;
    for (const [tensors, message] of having) assert.throws(written(tensors), refusal("input", message));
  }));

Deno.test("statistics of another model are refused, by the name of the file that differs", () =>
  withStatistics((statistics, folder) => {
    const check = (own = statistics) => {
      using checkpoint = openCheckpoint(folder);
      checkStatistics(own, checkpoint, 1);
    };
    check();
    const { provenance, text } = statistics;
    const of = (files: Record<string, string>) => ({ ...statistics, provenance: { ...provenance, files } });
    assert.throws(() => check(of({})), refusal("input", /measured without model.safetensors/));
    const more = of({ ...provenance.files, "part-2.safetensors": "0".repeat(16) });
    assert.throws(() => check(more), refusal("input", /measured with part-2.safetensors/));
    const tokens = text.tokens.with(3, 41);
    const beyond = { ...statistics, text: { ...text, tokens } };
    assert.throws(() => check(beyond), refusal("input", /token 41, its vocabulary ends at 40/));
    appendFileSync(join(folder, "tokenizer.json"), " ");
    assert.throws(() => check(), refusal("input", /tokenizer.json differs/));
    writeLetterModel(folder);
    check();
    using checkpoint = openCheckpoint(folder);
    const other = of({ [WEIGHTS]: "0".repeat(16) });
    assert.throws(
      () => checkStatistics(other, checkpoint, 1),
      refusal("input", /model.safetensors has changed/),
    );
  }));

Deno.test("statistics must have the windows of the graph", () =>
  withStatistics(async (statistics, folder) => {
    using checkpoint = openCheckpoint(folder);
    const graph = await calibrationGraph(checkpoint);
    checkWindows(statistics, graph);
    const having = (edit: (windows: Map<string, typeof down>) => void) => {
      const windows = new Map(statistics.windows);
      edit(windows);
      return () => checkWindows({ ...statistics, windows }, graph);
    };
    const down = statistics.windows.get("1.down")!;
    assert.throws(having((w) => w.delete("1.down")), refusal("input", /window 1.down is missing/));
    assert.throws(having((w) => w.set("2.down", down)), refusal("input", /no window "2.down"/));
    const short = { ...down, fisher: down.fisher.slice(1) };
    assert.throws(
      having((w) => w.set("1.down", short)),
      refusal("input", /1.down has 63 outputs and 90 inputs/),
    );
  }));
