/** What users get wrong when a compile is fitted to statistics, and what such a bundle says of itself. */
import assert from "node:assert/strict";
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseStatistics, type Statistics, statisticsBytes } from "../compiler/calibration/statistics.ts";
import { reportOf } from "../compiler/report.ts";
import { readPlan } from "../compiler/bundle.ts";
import { assertFailed, assertWorked, hcinfer, temporary } from "../tests/command_line.ts";
import { writeLetterModel } from "../tests/fixtures/letter_model.ts";
import { type TinyModel, writeTinyModel } from "../tests/fixtures/tiny_model.ts";
import { poorAlone } from "./summary.ts";

const LOSS =
  /^loss +measured KL \S+ ± \S+ nats a token alone, \S+ ± \S+\s+with\s+corrections;\s+predicted \S+ alone, \S+\s+with\s+corrections$/m;

const PROSE = "the compiler reads a file and writes another, row by row. ".repeat(60);

interface Rig {
  readonly at: (name: string) => string;
  readonly statistics: string;
  /** Compiles the model into the folder "bundle". */
  readonly compile: (...args: string[]) => ReturnType<typeof hcinfer>;
  /** Statistics with changes, in a file. */
  readonly edited: (name: string, edit: (statistics: Statistics) => Statistics | void) => string;
}

/** A model of letters and its statistics on a text. */
async function withStatistics(
  test: (rig: Rig) => Promise<void>,
  { text = PROSE, model = {} }: { readonly text?: string; readonly model?: TinyModel } = {},
): Promise<void> {
  using folder = temporary();
  const at = (name: string) => join(folder.path, name);
  mkdirSync(at("model"));
  writeLetterModel(at("model"), model);
  writeFileSync(at("text.txt"), text);
  const statistics = at("stats.safetensors");
  const sizes = ["--tokens", "2048", "--fisher-tokens", "512", "--threads", "1"];
  assertWorked(
    await hcinfer(["calibrate", at("model"), "--text", at("text.txt"), "-o", statistics, ...sizes]),
    /^measured/,
  );
  const compile = (...args: string[]) =>
    hcinfer(["compile", at("model"), "-o", at("bundle"), "--threads", "1", "--weights", "q3s", ...args]);
  const edited: Rig["edited"] = (name, edit) => {
    const read = parseStatistics(new Uint8Array(readFileSync(statistics)), statistics);
    const bytes = statisticsBytes(edit(read) ?? read);
    writeFileSync(at(name), Buffer.concat(bytes));
    return at(name);
  };
  await test({ at, statistics, compile, edited });
}

Deno.test("compile: statistics that are not of the model, or no statistics", () =>
  withStatistics(async ({ at, statistics, compile, edited }) => {
    const failed = async (file: string, message: RegExp) => {
      assertFailed(await compile("--statistics", file), 7, message);
      assert.equal(existsSync(at("bundle")), false);
    };
    await failed(at("none"), /none: No such file/);
    await failed(at("model"), /model.*(folder|not a file)/);
    await failed(at("text.txt"), /text.txt/);
    const bytes = readFileSync(statistics);
    writeFileSync(at("short"), bytes.subarray(0, bytes.length - 100));
    await failed(at("short"), /short/);
    const nan = edited("nan", ({ windows }) => void windows.get("1.o")!.fisher.fill(NaN, 0, 1));
    await failed(nan, /NaN in "1.o.fisher" at 0/);
    const missing = edited("missing", ({ windows, ...rest }) => {
      return { ...rest, windows: new Map([...windows].filter(([name]) => name !== "1.o")) };
    });
    await failed(missing, /the window 1.o is missing/);

    copyFileSync(join(at("model"), "tokenizer.json"), at("tokenizer.json"));
    const tokenizer = readFileSync(at("tokenizer.json"), "utf8");
    writeFileSync(join(at("model"), "tokenizer.json"), `${tokenizer} `);
    await failed(statistics, /not of .*model: tokenizer.json differs/);
    copyFileSync(at("tokenizer.json"), join(at("model"), "tokenizer.json"));
    const edit = (_: string, values: Float32Array) => void (values[0]! += 1);
    writeTinyModel(at("model"), { edit });
    copyFileSync(at("tokenizer.json"), join(at("model"), "tokenizer.json"));
    await failed(statistics, /not of .*model: .* has changed, or is another model's/);
  }));

Deno.test("compile: options that contradict each other", () =>
  withStatistics(async ({ at, statistics, compile }) => {
    const given = ["--statistics", statistics];
    assertFailed(
      await compile("--weights", "bf16", "--quantizer", "joint"),
      2,
      /bf16 is not quantised, so --quantizer would have no effect/,
    );
    assertFailed(await compile("--weights", "bf16", ...given), 2, /so --statistics would have no effect/);
    assertFailed(await compile("--correct", "none", "--choice", "count"), 2, /so --choice would have no/);
    assertFailed(await compile(...given, "--machine", "abacus"), 2, /--machine abacus is neither a file nor/);
    assertFailed(
      await compile(...given, "--budget", "bytes:0.001%"),
      2,
      /the budget of 0.001 % holds nothing: it is \d+ bytes a token, .* takes \d+; give at least/,
    );
    assert.equal(existsSync(at("bundle")), false);
  }));

Deno.test("compile: a choice without statistics calibrates first, and says so", () =>
  withStatistics(async ({ compile }) => {
    // The texts that come with hcinfer have letters that this model does not.
    const { err } = await compile("--choice", "count");
    assert.match(err, /^no --statistics are given: calibrating on the texts that come with hcinfer\n/);
  }));

Deno.test("compile, inspect and rebudget say what a bundle is made with and what it is predicted to lose", () =>
  withStatistics(async ({ at, statistics, compile }) => {
    const compiled = await compile("--statistics", statistics, "--quantizer", "joint");
    assertWorked(compiled, LOSS);
    const shown = await hcinfer(["inspect", at("bundle")]);
    assert.match(
      shown.out,
      /^made with +--weights q3s --head q8 --quantizer joint --correct sparse\n +--budget bytes:10% --choice threshold --residual-width 3; calibrated\n +on 2048 tokens of text.txt$/m,
    );
    assert.match(shown.out, /^kind +windows +bytes +error +left +rows +stored +read\nqkv +2 q3s /m);
    assert.match(shown.out, /^kind +alone +corrected +one alone +one corrected\nqkv /m);
    assert.deepEqual(shown.out.split("\n").filter((line) => line.length > 80), []);
    const json = JSON.parse((await hcinfer(["inspect", at("bundle"), "--json"])).out);
    assert.equal(json.provenance.options.choice, "threshold");
    assert.equal(json.provenance.options.residualWidth, 3);
    assert.deepEqual(json.provenance.statistics.texts.map((t: { name: string }) => t.name), ["text.txt"]);
    assert.match(json.provenance.statistics.texts[0].sha256, /^[0-9a-f]{64}$/);
    const { predicted, measured } = json.loss;
    assert.ok(predicted.corrected < predicted.alone && measured.corrected.mean < measured.alone.mean);
    assert.match(shown.out, LOSS);

    const more = await hcinfer(["rebudget", at("bundle"), "--budget", "bytes:30%", "-o", at("more")]);
    assert.match(
      more.err,
      /^loss +measured KL \S+ ± \S+ nats a token alone, not\s+measured with\s+corrections; predicted/m,
    );
    const { corrected: _, ...alone } = measured;
    assert.deepEqual(readPlan(at("more")).report.measured, alone);
    assertWorked(more, /^corrections rows.*\n.*\(\d+\.\d % of the backbone\)\n[^]*^wrote .*more\n$/m);
    const said = await hcinfer(["inspect", at("more")]);
    assert.match(said.out, /--budget\s+bytes:30%[^]*;\s+rebudgeted\s+from\s+bytes:10%/);
    assertWorked(await hcinfer(["run", at("more"), "the", "--max-tokens", "3"]), /^prompt/);
    assertFailed(await hcinfer(["rebudget", at("bundle")]), 2, /--budget/);
    assertFailed(
      await hcinfer(["rebudget", at("bundle"), "--budget", "rank:3"]),
      2,
      /rank 3 is more than the 0/,
    );
  }));

Deno.test("singular moments, channels that never fire and outputs that do not matter still make a bundle", () => {
  const silent = (name: string, values: Float32Array) => {
    if (name.endsWith("input_layernorm.weight")) values.fill(0, 3, 9);
  };
  return withStatistics(async ({ at, statistics, compile, edited }) => {
    const worthless = edited("worthless", ({ windows }) => {
      for (const { fisher } of windows.values()) fisher.fill(0);
    });
    for (const [file, quantizer] of [[statistics, "joint"], [statistics, "gptq"], [worthless, "joint"]]) {
      assertWorked(await compile("--statistics", file!, "--quantizer", quantizer!), /wrote .*bundle/);
      const run = await hcinfer(["run", at("bundle"), "the", "--max-tokens", "3", "--quiet"]);
      assertWorked(run, /^$/);
    }
    const { out } = await hcinfer(["inspect", at("bundle")]);
    assert.match(
      out,
      /0\.0 rows a token \(at most 16 of 90\), what is worth .* nats per MB:\n +predicted loss 0\.0 nats/,
    );
  }, { text: "the ".repeat(700), model: { edit: silent } });
});

Deno.test("a backbone that is predicted to be poor alone is warned of, with the figures", () => {
  const report = (alone: number, corrected: number) => {
    return { ...reportOf({ weights: [], vectors: {}, windows: [] }, []), predicted: { alone, corrected } };
  };
  assert.match(poorAlone(report(0.36, 0.085))!, /predicted KL 0.36 nats a token alone, 0.085 with/);
  for (const [alone, corrected] of [[0.019, 0.004], [0.2, 0.11], [0, 0]] as const) {
    assert.equal(poorAlone(report(alone, corrected)), undefined);
  }
  assert.equal(poorAlone(reportOf({ weights: [], vectors: {}, windows: [] }, [])), undefined);
  // What was measured counts, and is said first.
  const measured = (alone: number, corrected: number) => {
    const mean = (mean: number) => ({ mean, standardError: mean / 10 });
    const found = { tokens: 2040, windows: 8, alone: mean(alone), corrected: mean(corrected) };
    return poorAlone({ ...report(0.36, 0.085), measured: found });
  };
  assert.match(measured(0.44, 0.08)!, /measured KL 0.44 ± 0.044 nats a token alone, 0.08 ± 0.008 with/);
  assert.equal(measured(0.1, 0.08), undefined);
});
