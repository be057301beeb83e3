/** A smoke test of each command, in processes of their own, on a model of a few thousand random weights. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { COMPILE_DEFAULTS, compileModel } from "../compiler/compile.ts";
import { genericProfile } from "../compiler/profile.ts";
import { readSafetensors } from "../compiler/weights/safetensors.ts";
import { assertFailed, assertWorked, hcinfer, temporary } from "../tests/command_line.ts";
import {
  CONTEXT,
  VOCABULARY,
  withLetterBundle as withBundle,
  writeLetterModel as writeModel,
} from "../tests/fixtures/letter_model.ts";
import { figures, planSummary, predicted, windows, wrapped } from "./summary.ts";

Deno.test("run: text to standard output, speed to standard error", () =>
  withBundle(async (bundle) => {
    const run = (...args: string[]) => hcinfer(["run", bundle, ...args]);
    const plain = await run("a compiler", "--max-tokens", "5");
    assertWorked(plain, /^prompt 10 tokens, \d+ tokens\/s; first token after .*\n$/);
    assert.match(plain.out, /\n$/);
    const quiet = await run("a compiler", "--max-tokens", "5", "--quiet", "--threads", "1");
    assertWorked(quiet, /^$/);
    assert.equal(quiet.out, plain.out);
    const piped = await hcinfer(["run", bundle, "-", "--max-tokens", "5", "--quiet"], "a compiler");
    assert.equal(piped.out, plain.out);
    const chat = await run("hi", "--system", "be brief", "--max-tokens", "2");
    assertWorked(chat, /^prompt 28 tokens/);
    const sampled = await run(
      "a",
      "--max-tokens",
      "9",
      "--temperature",
      "2",
      "--seed",
      "7",
      "--top-k",
      "9",
      "--quiet",
    );
    assert.deepEqual(
      await run("a", "--max-tokens", "9", "--temperature", "2", "--seed", "7", "--top-k", "9", "--quiet"),
      sampled,
    );
    const whole = (await run("a", "--max-tokens", "9", "--temperature", "5", "--seed", "7", "--quiet")).out;
    const stop = whole.slice(3, 5);
    const stopped = await run("a", "--temperature", "5", "--seed", "7", "--stop", "never", "--stop", stop);
    assertWorked(stopped, /; ended by a stop text\n$/);
    assert.equal(stopped.out, `${whole.slice(0, whole.indexOf(stop))}\n`);
    const varied = await run(
      "a",
      "--max-tokens",
      "30",
      "--presence-penalty",
      "2",
      "--frequency-penalty",
      "2",
    );
    assertWorked(varied, /^prompt 1 tokens/);
    assert.ok(varied.out.length > 4 && new Set(varied.out).size === varied.out.length, varied.out);
    const short = await run("abc", "--context", "5");
    assertWorked(short, /prompt 3 tokens.*ended by (the end of the context|a stop token)\n$/);

    assertFailed(
      await run("a", "--temperature", "hot"),
      2,
      /--temperature.*Expected a number from 0 to 1000/s,
    );
    assertFailed(
      await run("a", "--top-p", "0.5", "--seed", "1"),
      2,
      /--top-p, --seed need sampling: add --temp/,
    );
    assertFailed(await run(), 2, /there is no prompt: give one, or "-"/);
    assertFailed(await run("a", "--context", "65"), 2, /a context of 65 tokens: expected 1 to 64/);
    assertFailed(await run("abcdef", "--context", "4"), 7, /prompt has 6 tokens, the context holds 4/);
    assertFailed(await run("a".repeat(CONTEXT + 1)), 7, /prompt has 65 tokens, the context holds 64/);
    assertFailed(await run("ABC"), 7, /the prompt has no tokens/);
  }));

Deno.test("run: files that are not in the bundle's manifest, or changed since, are not used", () =>
  withBundle(async (bundle) => {
    writeFileSync(join(bundle, "tokenizer_config.json"), "{}");
    assertFailed(await hcinfer(["run", bundle, "hi", "--chat"]), 5, /tokenizer_config.json was changed/);
  }));

Deno.test("logits: a file of every token's row", () =>
  withBundle(async (bundle, folder) => {
    const output = join(folder, "logits.safetensors");
    const logits = (...args: string[]) => hcinfer(["logits", bundle, "-o", output, ...args]);
    const written = await logits("--tokens", "1,2,40");
    assertWorked(written, /^wrote .*: logits \[3,41\]\n$/);
    assert.equal(written.out, "");
    const { tensors } = readSafetensors(readFileSync(output), output);
    assert.deepEqual(tensors.get("logits")?.shape, [3, VOCABULARY]);
    assertFailed(await logits("--tokens", "1,x"), 2, /like 1,2,3/);
    assertFailed(await logits("--tokens", "1,41"), 7, /token 41 at index 1 is outside the vocabulary of 41/);
    assertFailed(await logits("--tokens", "1,2,3", "--context", "2"), 7, /do not fit the context of 2/);
    assertFailed(await logits(), 2, /--tokens/);
    assert.deepEqual(readdirSync(folder).sort(), ["bundle", "logits.safetensors", "model"]);
  }));

Deno.test("bench: speeds of the prompt and of decoding", () =>
  withBundle(async (bundle) => {
    const bench = (...args: string[]) => hcinfer(["bench", bundle, "--repeats", "2", ...args]);
    const shown = await bench("--prompt", "16", "--tokens", "8");
    assertWorked(shown, /^$/);
    assert.match(
      shown.out,
      /^tokens per second +median +least +most\nprompt of 16 .*\ndecode 8 after it .*\n/,
    );
    // The mode that ran, not the one that was asked for.
    assert.match(shown.out, /, corrections (inline|async), resident /);
    const json = await bench("--prompt", "16", "--tokens", "8", "--json", "--corrections", "off");
    const { speeds, prompt, corrections, mode } = JSON.parse(json.out);
    assert.deepEqual([speeds.length, prompt, corrections, mode], [2, 16, "off", "off"]);
    assert.ok(speeds.every((speed: { decode: number }) => speed.decode > 0));
    assertFailed(await bench("--prompt", "60", "--tokens", "8"), 2, /do not fit the context of 64/);
    assertFailed(await bench("--repeats", "0"), 2, /at least 1/);
  }));

Deno.test("compile and inspect: a bundle, and what is in it", () =>
  withBundle(async (bundle, folder, model) => {
    const output = join(folder, "compiled");
    const compiled = await hcinfer(["compile", model, "-o", output, "--weights", "q4", "--group", "32"]);
    assertWorked(compiled, /^model .*\nbackbone +q4g32.*\nwrote .*compiled: .* in /ms);
    assert.equal(compiled.out, "");
    assert.ok(existsSync(join(output, "weights.safetensors")));
    const shown = await hcinfer(["inspect", output]);
    assertWorked(shown, /^$/);
    assert.match(shown.out, /^model .*\n/m);
    assert.deepEqual(shown.out.split("\n").filter((line) => line.length > 80), []);
    assert.equal(
      JSON.parse((await hcinfer(["inspect", output, "--json"])).out).model.vocabularySize,
      VOCABULARY,
    );
    assertFailed(await hcinfer(["inspect", output, "--json", "--graph"]), 2, /cannot be used with/);
    assertFailed(await hcinfer(["inspect", model]), 5, /it is a model: compile it first/);
    assertFailed(await hcinfer(["compile", bundle, "-o", join(folder, "no")]), 4, /config.json/);
    assertFailed(
      await hcinfer(["compile", model, "-o", join(folder, "no"), "--group", "48"]),
      2,
      /Allowed choices/,
    );
    assert.ok(!existsSync(join(folder, "no")));
  }));

Deno.test("compile: a model without a tokenizer becomes a bundle without text, and that is said", async () => {
  using folder = temporary();
  const [model, bundle] = [join(folder.path, "model"), join(folder.path, "bundle")];
  writeModel(model);
  rmSync(join(model, "tokenizer.json"));
  const compiled = await hcinfer(["compile", model, "-o", bundle]);
  assertWorked(compiled, /^.*model has no tokenizer\.json: the bundle .*\nmodel [^]*\nwrote /);
  assertFailed(
    await hcinfer(["run", bundle, "hi"]),
    4,
    /tokenizer\.json does not exist: without a tokenizer/,
  );
});

Deno.test("profile: the profiles that come with hcinfer", async () => {
  const listed = await hcinfer(["profile", "--list"]);
  assertWorked(listed, /^$/);
  assert.match(listed.out, /^generic-2-core +/m);
  assertFailed(await hcinfer(["profile", "--threads", "0"]), 2, /at least 1/);
});

Deno.test("a plan's summary fits 80 columns, and its figures add up", async () => {
  using folder = temporary();
  const model = join(folder.path, "model");
  mkdirSync(model);
  writeModel(model);
  for (const correct of ["sparse", "none"] as const) {
    const { plan } = await compileModel({
      ...COMPILE_DEFAULTS,
      weights: "q3",
      group: 32,
      correct,
      model,
      output: join(folder.path, correct),
      threads: 2,
      profile: genericProfile(2),
    });
    const summary = planSummary(plan);
    for (const line of summary.split("\n")) assert.ok(line.length <= 80, line);
    assert.match(summary, /^model {7}.*\nbackbone {4}q3g32 /);
    assert.match(
      summary,
      correct === "none" ? /^corrections none$/m : /^corrections rows in 8 of 8 windows, .* rows a token$/m,
    );
    const figure = figures(plan);
    const bytes = plan.weights.reduce((sum, weight) => sum + weight.bytes, 0);
    assert.equal(figure.backboneBytes + figure.headBytes, bytes);
    assert.equal(figure.correctionBytesRead > 0, correct === "sparse");
    assert.ok(figure.correctionBytesRead <= figure.correctionBytesStored);
    assert.ok(figure.relativeError > 0 && figure.relativeError < 0.2);
    assert.equal(windows(plan).length, 8);
    assert.ok([...predicted(plan.graph).values()].every((microseconds) => microseconds > 0));
  }
});

Deno.test("text is wrapped between words, at 80 columns", () => {
  const words = Array.from({ length: 60 }, (_, i) => "x".repeat(1 + i * 7 % 13));
  const lines = wrapped(words.join(" "), 4).split("\n");
  for (const line of lines) assert.ok(line.length <= 80 && /^ {4}\S/.test(line), line);
  assert.equal(lines.map((line) => line.trim()).join(" "), words.join(" "));
  assert.equal(wrapped("y".repeat(100), 0), "y".repeat(100));
});
