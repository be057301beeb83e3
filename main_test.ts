import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseGraph } from "./compiler/ir/parse.ts";
import { printGraph } from "./compiler/ir/text.ts";
import { readSafetensors } from "./compiler/weights/safetensors.ts";
import { hcinfer as runCommand, type Outcome, temporary } from "./tests/command_line.ts";

const MODEL = fileURLToPath(new URL("./examples/models/tiny-dense", import.meta.url));

function hcinfer(...args: string[]): Promise<Outcome> {
  return runCommand(args);
}

Deno.test("a checkpoint to tokens, from the command line", async () => {
  using folder = temporary();
  const [bundle, exact] = [join(folder.path, "q3"), join(folder.path, "bf16")];
  const compiled = await hcinfer("compile", MODEL, "-o", bundle, "--weights", "q3", "--group", "32");
  assert.equal(compiled.code, 0, compiled.err);
  assert.match(compiled.err, /q3g32/);
  assert.equal(compiled.out, "");
  const reference = await hcinfer("compile", MODEL, "-o", exact, "--weights", "bf16", "--head", "bf16");
  assert.equal(reference.code, 0, reference.err);

  const run = ["run", bundle, "The compiler", "--max-tokens", "12", "--temperature", "0.8", "--seed", "5"];
  const first = await hcinfer(...run);
  const again = await hcinfer(...run, "--threads", "1", "--corrections", "inline");
  assert.equal(first.code, 0, first.err);
  assert.notEqual(first.out.trim(), "");
  assert.equal(again.out, first.out);
  assert.match(first.err, /tokens\/s/);

  const graph = (await hcinfer("inspect", bundle, "--graph")).out;
  assert.equal(printGraph(await parseGraph(graph)), graph);
  const plan = JSON.parse((await hcinfer("inspect", bundle, "--json")).out);
  assert.equal(plan.model.hiddenSize, 256);
  assert.ok(plan.prediction.modes.length > 0);
  const report = (await hcinfer("inspect", bundle)).out;
  assert.match(report, /^Where a token's time and bytes go\nkind /);
  assert.match(report, /^gate_up +8 q\w+ /m);
  assert.match(report, /all predicted/);
  assert.match(report, /gate_up of layers 0-7\n +\d/);
  assert.deepEqual(report.split("\n").filter((line) => line.length > 80), []);

  const logits = join(folder.path, "logits.safetensors");
  const written = await hcinfer("logits", bundle, "--tokens", "1,2,3", "-o", logits);
  assert.equal(written.code, 0, written.err);
  const { tensors } = readSafetensors(readFileSync(logits), logits);
  assert.deepEqual(tensors.get("logits")?.shape, [3, 4096]);
  assert.equal(tensors.get("logits")?.dtype, "F32");

  const text = join(folder.path, "text.txt");
  writeFileSync(text, "The compiler reads a file and writes another file. ".repeat(20));
  const evaluated = await hcinfer(
    "eval",
    bundle,
    "--text",
    text,
    "--reference",
    exact,
    "--window",
    "64",
    "--json",
  );
  assert.equal(evaluated.code, 0, evaluated.err);
  const result = JSON.parse(evaluated.out);
  assert.ok(result.kl > 0 && result.kl < 1 && result.perplexity > 1 && result.top1 > 0.5);
  assert.deepEqual(readdirSync(folder.path).sort(), ["bf16", "logits.safetensors", "q3", "text.txt"]);
});

Deno.test("what a user gets wrong is one line and an exit code", async () => {
  const cases: [number, RegExp, string[]][] = [
    [2, /unknown option/, ["compile", "x", "-o", "y", "--bogus"]],
    [2, /Did you mean compile/, ["compil"]],
    [2, /argument missing|missing required argument/, ["run"]],
    [2, /--correct none/, ["compile", MODEL, "-o", "y", "--correct", "none", "--budget", "rank:8"]],
    [2, /rank:N is for low_rank/, ["compile", MODEL, "-o", "y", "--correct", "sparse", "--budget", "rank:8"]],
    [2, /bytes:N%/, ["compile", MODEL, "-o", "y", "--budget", "10%"]],
    [2, /nothing to correct/, ["compile", MODEL, "-o", "y", "--weights", "bf16", "--correct", "sparse"]],
    [2, /repetition-penalty.*from 0\.01 to 100/, ["run", "x", "hi", "--repetition-penalty", "0"]],
    [2, /1,2,3/, ["logits", "x", "--tokens", "1,b", "-o", "y"]],
    [4, /does-not-exist/, ["compile", "does-not-exist", "-o", "y"]],
    [5, /does-not-exist/, ["inspect", "does-not-exist"]],
    [5, /is a file; a bundle is a folder that hcinfer compile wrote/, [
      "run",
      fileURLToPath(import.meta.url),
      "hi",
    ]],
    [2, /may use \d+ processors? \(\d+ cores?\): expected at most/, ["run", "x", "hi", "--threads", "9999"]],
  ];
  await Promise.all(cases.map(async ([code, message, args]) => {
    const outcome = await hcinfer(...args);
    assert.equal(outcome.code, code, `${args.join(" ")}: ${outcome.err}`);
    assert.match(outcome.err, message);
    assert.doesNotMatch(outcome.err, /^\s+at /m);
    assert.equal(outcome.out, "");
  }));
  for (const args of [["inspect", "does-not-exist", "--debug"], ["--debug", "inspect", "does-not-exist"]]) {
    const debug = await hcinfer(...args);
    assert.equal(debug.code, 5);
    assert.match(debug.err, /^\s+at /m);
  }
  const nothing = await hcinfer();
  assert.equal(nothing.code, 2);
  assert.match(nothing.err, /^Usage: hcinfer/);
  assert.equal(nothing.out, "");
});

Deno.test("help and version go to standard output", async () => {
  const help = await hcinfer("compile", "--help");
  assert.equal(help.code, 0);
  assert.match(help.out, /Examples:/);
  assert.deepEqual(help.out.split("\n").filter((line) => line.length > 80), []);
  const commands = [
    "compile",
    "calibrate",
    "run",
    "chat",
    "inspect",
    "eval",
    "tasks",
    "logits",
    "profile",
    "bench",
  ];
  for (const command of commands) {
    const { out } = await hcinfer("help", command);
    assert.match(out, new RegExp(`^Usage: hcinfer ${command} [^]*Examples?:`));
    assert.deepEqual(out.split("\n").filter((line) => line.length > 80), []);
  }
  assert.match((await hcinfer("--version")).out, /^\d+\.\d+\.\d+\n$/);
});
