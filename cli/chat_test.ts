import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { COMPILE_DEFAULTS, compileModel } from "../compiler/compile.ts";
import { genericProfile } from "../compiler/profile.ts";
import { assertFailed, assertWorked, hcinfer, temporary } from "../tests/command_line.ts";
import { withLetterBundle, writeLetterModel } from "../tests/fixtures/letter_model.ts";

const path = (name: string) => fileURLToPath(new URL(`../${name}`, import.meta.url));

async function compile(model: string, output: string): Promise<void> {
  const settings = { weights: "q3", group: 32, threads: 2, profile: genericProfile(2) } as const;
  await compileModel({ ...COMPILE_DEFAULTS, ...settings, model, output });
}

Deno.test("chat: every line of standard input is a turn", () =>
  withLetterBundle(async (bundle) => {
    const chat = (input: string, ...args: string[]) =>
      hcinfer(["chat", bundle, "--max-tokens", "3", ...args], input);
    const first = await chat("a\n");
    assertWorked(first, /^$/);
    assert.match(first.out, /^[^\n]{0,3}\n$/);
    const two = await chat("a\n\n  \nb");
    assertWorked(two, /^$/);
    assert.ok(two.out.startsWith(first.out));
    assert.equal(two.out.split("\n").length, 3);
    const reset = await chat("a\n/reset\na\n/quit\na\n");
    assertWorked(reset, /^The conversation begins anew\.\n$/);
    assert.equal(reset.out, first.out.repeat(2));
    const joined = await chat("a\\\nb\n");
    assert.equal(joined.out.split("\n").length, 2);
    assertWorked(await chat("/help\n/nope\n"), /\/reset .*\nThere is no \/nope; \/help shows/s);
    const system = await chat("a\n", "--system", "b");
    assertWorked(system, /^$/);
    // The template writes "role: text! ", a letter a token.
    assertFailed(
      await chat(`${"a".repeat(90)}\n`),
      7,
      /would have 98 tokens with this, the context holds 64: \/reset/,
    );
    assertFailed(await chat("a\n", "--seed", "1"), 2, /--seed needs sampling/);
  }));

Deno.test("chat: without a template the text goes on, and it says so", async () => {
  using folder = temporary();
  const [model, bundle] = [join(folder.path, "model"), join(folder.path, "bundle")];
  writeLetterModel(model);
  rmSync(join(model, "tokenizer_config.json"));
  await compile(model, bundle);
  const chat = await hcinfer(["chat", bundle, "--max-tokens", "3"], "a\nb\n");
  assertWorked(chat, /^model has no chat template: it continues your text instead of answering\.\n$/);
  const run = await hcinfer(["run", bundle, "a", "--max-tokens", "3", "--quiet"]);
  assert.ok(chat.out.startsWith(run.out));
  assertFailed(await hcinfer(["chat", bundle, "--system", "b"], "a\n"), 7, /no place for a system message/);
  // What a model is to continue can fill the context to its end.
  const full = await hcinfer(["chat", bundle, "--context", "8", "--max-tokens", "99"], "abcdef\n");
  assertWorked(full, /The context of 8 tokens is full: \/reset begins a new one, --context 64 at the start/);
});

/** Types at a terminal: each text once what came before it matches. Returns all that was shown, with ␛ for escapes, and the exit code. */
function typed(
  args: readonly string[],
  steps: readonly (readonly [RegExp, string])[],
  env: Readonly<Record<string, string>> = {},
): Promise<{ shown: string; code: number | null }> {
  const line = [Deno.execPath(), "run", "-A", path("main.ts"), ...args].map((arg) => `'${arg}'`).join(" ");
  // Without a shell between them: dash, having met Ctrl-C too, would end in 130 whatever the program does.
  const child = spawn("script", ["-qec", `stty cols 80 rows 24; exec ${line}`, "/dev/null"], {
    env: { ...process.env, TERM: "xterm", NO_COLOR: "", ...env },
  });
  return new Promise((resolve, reject) => {
    let [shown, from, step] = ["", 0, 0];
    const late = setTimeout(() => child.kill(), 60_000);
    child.stdout.on("data", (bytes: Uint8Array) => {
      shown += new TextDecoder().decode(bytes).replaceAll("\x1b", "␛");
      const [pattern, text] = steps[step] ?? [];
      if (pattern === undefined || text === undefined || !pattern.test(shown.slice(from))) return;
      [from, step] = [shown.length, step + 1];
      child.stdin.write(text);
    });
    child.on("error", reject);
    child.on("close", (code) => {
      clearTimeout(late);
      resolve({ shown, code });
    });
  });
}

const CTRL_C = "\x03", CTRL_D = "\x04";
const PROMPT = /> (␛\[\d+G)?$/;

Deno.test({
  name: "chat: at a terminal, Ctrl-C stops an answer and not the program",
  ignore: Deno.build.os !== "linux" || !existsSync("/usr/bin/script"),
  fn: async () => {
    using folder = temporary();
    const bundle = join(folder.path, "bundle");
    // So long an answer that Ctrl-C comes before its end.
    const model = join(folder.path, "model");
    cpSync(path("examples/models/tiny-dense"), model, { recursive: true });
    const config = join(model, "config.json");
    const longer = readFileSync(config, "utf8").replace(": 1024", ": 65536");
    writeFileSync(config, longer);
    await compile(model, bundle);
    const greedy = ["--temperature", "0", "--context", "65536", "--max-tokens", "65536"];
    const stopped = await typed(["chat", bundle, "--threads", "1", ...greedy], [
      [PROMPT, "Hello there.\r"],
      [/there\.\s+[a-z][^]{9}/, CTRL_C],
      [PROMPT, "/nope\r"],
      [PROMPT, `half a line${CTRL_C}`],
      [PROMPT, CTRL_C],
      [/again[^]*> (␛\[\d+G)?$/, CTRL_C],
    ]);
    assert.equal(stopped.code, 0, stopped.shown);
    assert.match(stopped.shown, /a context of 65536 tokens; \/help shows/);
    assert.match(stopped.shown, /␛\[2m\d+\.\d tokens\/s, \d+ of 65536 tokens, stopped␛\[22m/);
    assert.match(stopped.shown, /There is no \/nope/);
    assert.match(stopped.shown, /\(Ctrl-C again, Ctrl-D or \/quit ends the chat\)/);
    assert.doesNotMatch(stopped.shown, /the model's sampling/);

    const sampled = await typed(["run", bundle], [
      // Pasted, so one message.
      [PROMPT, "Hello\rthere.\r"],
      [/32768 tokens[^]*> (␛\[\d+G)?$/, CTRL_D],
    ], { NO_COLOR: "1" });
    assert.equal(sampled.code, 0, sampled.shown);
    assert.match(
      sampled.shown,
      /the model's sampling: temperature 0\.8, top-k 40, top-p 0\.95 \(--temperature 0 takes/,
    );
    assert.equal(sampled.shown.match(/\d of 32768 tokens/g)?.length, 1);
    assert.doesNotMatch(sampled.shown, /␛\[2m/);
  },
});
