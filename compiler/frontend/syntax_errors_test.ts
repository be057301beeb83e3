/** Source that does not parse, and hostile source: always diagnostics, never a crash, a hang or a wrong error. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../errors.ts";
import { errorsOf, messageOf, model, trace } from "../../tests/models/descriptions.ts";
import { scanLines } from "./lines.ts";

Deno.test("several syntax errors are each reported, with unsupported constructs in lines that parse", async () => {
  const source = `class Attention(Module):
    def __init__(self, config):
        self.q_proj = Linear(config.hidden_size, 4 * (3 + 2)
        self.k_proj = Linear(config.hidden_size 3)
        self.v = "abc
        if config.x = 3:
            pass
        while True:
            pass

    def forward(self, x)
        y = x +* 3
       return y

import os
def g(x):
return x
`;
  assert.deepEqual(await errorsOf(source), [
    '3:29 "(" is never closed',
    '4:49 syntax error at "3"',
    "5:18 this string is not closed on its line",
    '6:21 syntax error at "= 3"',
    "8:9 a while statement is outside the subset",
    '11:25 ":" is missing at the end of this def',
    '12:9 syntax error at "y = x +* 3"',
    "13:8 this indentation matches no block around it",
    "15:1 an import statement is outside the subset",
    "17:1 the block of line 16 is empty or not indented",
  ]);
});

Deno.test("brackets, strings and hints", async () => {
  assert.match((await errorsOf("x = (1]"))[0] ?? "", /"\]" cannot close the "\("/);
  assert.match((await errorsOf("x = 1)"))[0] ?? "", /"\)" closes nothing/);
  assert.match((await errorsOf('x = """abc\n\n'))[0] ?? "", /1:5 this string is not closed in this file/);
  assert.match(await messageOf("x = a && b"), /accepted: and, or, not/);
  assert.match(await messageOf("x = \u201ca\u201d"), /quotes must be/);
  assert.match((await errorsOf("if x:\n"))[0] ?? "", /the file ends before the block/);
  assert.match((await errorsOf("x = 3\n    y = (4"))[0] ?? "", /is indented, but no block starts/);
});

Deno.test("logical lines: brackets, strings, continuations and comments", () => {
  const source = 'if a:  # why (\n    x = f(1,\n  # no\n 2)\n    y = """a\nb""" \\\n  + 1\n\nz = "#" # end';
  const lines = scanLines(source, (_, message) => assert.fail(message));
  assert.deepEqual(lines.map((l) => [l.row, l.indent, l.text, l.header]), [
    [0, 0, "if a:", true],
    [1, 4, "x = f(1,\n  # no\n 2)", false],
    [4, 4, 'y = """a\nb""" \\\n  + 1', false],
    [8, 0, 'z = "#"', false],
  ]);
});

const HOSTILE: Readonly<Record<string, string>> = {
  parentheses: `x = ${"(".repeat(60000)}`,
  nested: `x = ${"(".repeat(30000)}1${")".repeat(30000)}`,
  minus: `x = ${"-".repeat(60000)}1`,
  sum: `x = 1${"+1".repeat(30000)}`,
  attributes: `x = a${".b".repeat(30000)}`,
  blocks: Array.from({ length: 250 }, (_, i) => `${" ".repeat(i)}if 1:`).join("\n"),
  zeros: "\0".repeat(60000),
  quotes: '"'.repeat(60001),
  interpolations: `f"${"{".repeat(60000)}`,
  lines: "a b\n".repeat(16000),
  long: "a".repeat(100000),
  surrogates: "x = '\ud800'\n\ud800",
  range: model("x = 1\nfor i in range(10**9):\n    x = x + i"),
  loops: model("for i in range(9000):\n    for j in range(9000):\n        x = j"),
  doubling: model("l = [1]\nfor i in range(60):\n    l = l + l"),
  lists: model("l = [1]\nfor i in range(9000):\n    l = [l]\nm = [l]\nx = l == m\nself.l = l"),
  tree: model(
    "l = [1]\nfor i in range(64):\n    l = [l, l]\nm = [1]\nfor i in range(64):\n    m = [m, m]\nx = l == m",
  ),
  recursion: model("f(1)", "return tokens", "def f(x):\n    return [f(x) for i in range(1) if f(x)]"),
  constructor: model("Tiny(config)"),
  nodes: model(
    "",
    `x = self.embed(tokens)\n${"for i in range(20000):\n    x = silu(silu(silu(silu(silu(silu(x))))))"}\nreturn x`,
  ),
  circle: model(
    "self.c = B(self)",
    "return self.c.l(self.embed(tokens))",
    "class B(Module):\n    def __init__(self, p):\n        self.p = p\n        p.x = p\n        self.l = Linear(3, 3)",
  ),
};
for (const [name, source] of Object.entries(HOSTILE)) {
  Deno.test(`hostile source: ${name}`, async () => {
    await messageOf(source);
  });
}

/** Pieces of descriptions, so that random text gets past the first character. */
const PIECES = [
  ..."()[]{}:,.=+-*/%@<>!#'\"\\\n\t ",
  ..."\n    |\n        |class A(Module):|def forward(self, tokens, positions):|def __init__(self, config):"
    .split("|"),
  ..."self|config|x|Linear|Embedding|silu|range|for |in |if |else|elif |return |assert |not |and |None|is "
    .split("|"),
  ...'self.a = |self.a(tokens)|[i for i in range(3)]|config.hidden_size|1|8|1e400|0x|"""|f"|\u201c|\ud800|\r\n'
    .split("|"),
];

Deno.test("random source gives a graph or diagnostics, nothing else", async () => {
  const text = fc.array(fc.oneof({ weight: 9, arbitrary: fc.constantFrom(...PIECES) }, fc.string()), {
    maxLength: 60,
  });
  const source = fc.oneof(
    text.map((pieces) => pieces.join("")),
    text.map((pieces) => model(pieces.join("").replaceAll("\n", "\n        "))),
  );
  await fc.assert(
    fc.asyncProperty(source, async (code) => {
      try {
        await trace(code);
      } catch (error) {
        assert.ok(error instanceof HcinferError, String(error));
        assert.match(error.message, /^model\.py:\d+:\d+: error: /);
      }
    }),
    { numRuns: 300 },
  );
});

Deno.test("a random cut of a good description gives a graph or diagnostics that name a line of it", async () => {
  const good = model("self.a = Linear(8, 8)", "x = self.embed(tokens)\nreturn self.a(silu(x)) + x");
  await fc.assert(
    fc.asyncProperty(fc.nat(good.length), fc.nat(20), async (at, length) => {
      const code = good.slice(0, at) + good.slice(at + length);
      try {
        await trace(code);
      } catch (error) {
        assert.ok(error instanceof HcinferError, String(error));
        for (const [, line] of error.message.matchAll(/^model\.py:(\d+):/gm)) {
          assert.ok(Number(line) <= code.split("\n").length);
        }
      }
    }),
    { numRuns: 200 },
  );
});
