/** What the subset can say, and what it says about everything else. */
import assert from "node:assert/strict";
import { errorsOf, messageOf, model, trace } from "../../tests/models/descriptions.ts";

/** Expressions and their values; evaluated as the width of a linear. */
const NUMBERS: readonly [string, number][] = [
  ["1 + 2 * 3", 7],
  ["7 // 2 + 7 % 4", 6],
  ["-7 // 2 + 9", 5],
  ["-7 % 4", 1],
  ["2 ** 3 - 0x1", 7],
  ["1_000", 1000],
  ["8 / 2", 4],
  ["5 if config.tie_word_embeddings else 6", 5],
  ["len([1, 2, 3]) + len(range(2, 12, 3))", 7],
  ["[3, 4, 5][-1]", 5],
  ["getattr(config, 'nothing', None) or 9", 9],
  ["2 if hasattr(config, 'nothing') else 3", 3],
  ["min(3, 4) + max(3, 4) + int(2.7) + float(1)", 10],
  ["2 if 1 < 2 <= 2 != 3 else 9", 2],
  ["2 if None is None and 3 is not None else 9", 2],
  ["2 if 3 in [1, 2, 3] and 4 not in range(0, 8, 3) else 9", 2],
  ["2 if 'silu' == config.hidden_act else 9", 2],
  ["2 if 'il' in config['hidden_act'] and 'vocab_size' in config else 9", 2],
  ["2 if not (False or []) else 9", 2],
  ["len([i for i in range(10) if i % 2 == 0] + [1])", 6],
  ["double(4) + double(x=1, by=3)", 11],
  ["LIMIT", 12],
  ["floor(2.7) + ceil(2.2) + floor(log(8.0) / log(2)) + floor(sqrt(16)) + floor(pi)", 15],
  ["2 if log(4) == 2 * log(2) else 9", 2],
];
Deno.test("static values", async () => {
  const definitions =
    `LIMIT = 12\ndef double(x, *, by: int = 2) -> int:\n    """Doubles."""\n    return x * by`;
  for (const [expression, expected] of NUMBERS) {
    const graph = await trace(
      model(`self.a = Linear(8, ${expression})`, "return self.a(self.embed(tokens))", definitions),
    );
    const linear = graph.nodes.find((n) => n.op === "linear");
    assert.equal(linear?.outputs[0]?.type.shape[1], expected, expression);
  }
});

Deno.test("if, elif, else, loops and super().__init__() on static values", async () => {
  const init = `super().__init__()
width = 8
for i in range(3):
    if i == 0:
        width = width + 1
    elif i == 1:
        width = width * 2
    else:
        pass
self.a = Linear(8, width)`;
  const graph = await trace(model(init, "return self.a(self.embed(tokens))"));
  assert.equal(graph.nodes.at(-1)?.outputs[0]?.type.shape[1], 18);
});

Deno.test("a diagnostic has file, line, column, source line, caret and what is accepted", async () => {
  assert.equal(
    await messageOf(model("self.a =\tLinear(8, 8, bias=True)")),
    `model.py:5:31: error: Linear: a bias is not supported yet
    5 |         self.a =\tLinear(8, 8, bias=True)
      |                 \t             ^~~~~~~~~
      = accepted: bias=False, which is the default here`,
  );
});

const TRACING: readonly [string, string, RegExp][] = [
  // init, forward, first error
  ["x = config.hiden_size", "", /config.json has no field "hiden_size"; did you mean "hidden_size"\?/],
  ["x = config.num_layers", "", /did you mean "num_hidden_layers"/],
  ["x = config['nothing']", "", /no field "nothing"/],
  ["x = config.__proto__", "", /no field "__proto__"/],
  ["x = getattr(config, 'toString')", "", /has no field "toString"/],
  ["self.a = Linear(8)", "", /Linear misses its argument out_features/],
  ["self.a = Linear(8, 8, 8, 8)", "", /Linear takes 3 positional arguments, found 4/],
  ["self.a = Linear(8, 8, bais=True)", "", /no parameter bais; did you mean "bias"/],
  ["self.a = Linear(8, 8, in_features=3)", "", /argument in_features twice/],
  ["self.a = Linear(8, 8.5)", "", /out_features must be a whole number/],
  ["self.a = Tiny", "return self.a()", /Tiny.__init__ misses its argument config/],
  [
    "self.a = RMSNorm(4, eps=1)",
    "return self.a(self.embed(tokens))",
    /a expects 4 inputs, found a tensor \[T,8\] f32/,
  ],
  ["self.a = Linear(4, 4)", "return self.a(self.embed(tokens))", /Linear: a expects 4 inputs/],
  ["", "return self.embed(self.embed(tokens))", /embedding expects tokens/],
  ["", "return split_heads(self.embed(tokens), 3)", /cannot split 8 columns into heads of 3/],
  ["self.a = Linear(8, 4)", "x = self.embed(tokens)\nreturn x + self.a(x)", /two operands of one shape/],
  ["", "return self.embed(tokens) * 2", /no operator \* of a tensor \[T,8\] f32 and the number 2/],
  ["", "return self.embed(tokens) - self.embed(tokens)", /no operator -/],
  ["", "return Linear(8, 8)(self.embed(tokens))", /this Linear has no name/],
  ["", "self.late = 3\nreturn self.embed(tokens)", /an attribute set outside __init__/],
  [
    "",
    "if tokens:\n    return tokens",
    /a condition must be known when the model is compiled, found a tensor \[T\] i32/,
  ],
  ["", "return tokens", /must return logits \[T,vocabulary\] f32, found a tensor \[T\] i32/],
  ["", "return silu(self.embed(tokens), 3)", /silu takes 1 positional argument/],
  ["", "return self.embed(tokens).view(3)", /a tensor \[T,8\] f32 has no attribute view/],
  ["", "return rope(self.embed(tokens), positions, [1.0])", /rope expects \[T,heads,headDim\] f32/],
  ["", "return self.embed(3)", /x must be a tensor, found the number 3/],
  ["", "return self.embed(tokens)(3)", /cannot be called/],
  ["a, b = 1, 2, 3", "", /2 names for 3 values/],
  ["for i in 3:\n    pass", "", /cannot go through the number 3/],
  ["x = [1][3]", "", /no item 3 in a list of 1/],
  ["x = 1 // 0", "", /division of 1 by zero/],
  ["x = log(0)", "", /log\(0\) is no finite number/],
  ["x = 10 ** 400", "", /no finite number/],
  ["x = 'a' + 1", "", /no operator \+ of the string "a" and the number 1/],
  ["x = 'a' < 1", "", /cannot compare the string "a" < the number 1/],
  ["x = 1 is 1", "", /use ==/],
  [
    "if config.tie_word_embeddings:\n    pass\nelse:\n    y = 1\nx = y",
    "",
    /y is read before it has a value/,
  ],
  ["assert config.vocab_size < 10, 'too large'", "", /too large/],
  ["assert config.vocab_size < 10", "", /this assertion does not hold/],
  ["self.a = ModuleList([1])", "", /expected modules, found the number 1/],
];
for (const [init, forward, expected] of TRACING) {
  Deno.test(`tracing reports ${expected}`, async () => {
    const message = await messageOf(model(init || "pass", forward || undefined));
    assert.match(message, expected);
  });
}

Deno.test("independent tracing errors are reported together, a line that all layers share once", async () => {
  const init = `self.a = Linear(config.hiden_size, 8)
self.b = [Linear(8, config.vocab) for _ in range(5)]
self.c = Linear(9, 8)`;
  const errors = await errorsOf(
    model(init, "x = self.embed(tokens)\nfor b in self.b:\n    x = b(x)\nreturn self.c(self.embed(tokens))"),
  );
  assert.deepEqual(
    errors,
    [
      '5:32 config.json has no field "hiden_size"; did you mean "hidden_size"?',
      '6:36 config.json has no field "vocab"; did you mean "vocab_size"?',
      "13:23 Linear: c expects 9 inputs, found a tensor [T,8] f32",
    ],
  );
});

Deno.test("a tracing error says which module was traced", async () => {
  const block = `class Block(Module):
    def __init__(self):
        self.a = Linear(3, 3)
    def forward(self, x):
        return self.a(x)`;
  const message = await messageOf(
    model("self.blocks = [Block()]", "return self.blocks[0](self.embed(tokens))", block),
  );
  assert.match(message, /= while tracing blocks.0 \(Block\)/);
});

const NAMES: readonly [string, string, RegExp][] = [
  ["x = Linaer(3, 3)", "", /Linaer is not defined; did you mean "Linear"/],
  ["x = nn.Linear(3, 3)", "", /nn is not defined/],
  ["", "return self.embd(tokens)", /Tiny has no attribute embd; did you mean "embed"/],
  ["x = [i for i in range(3)]\ny = i", "", /i is not defined/],
];
for (const [init, forward, expected] of NAMES) {
  Deno.test(`names are checked first: ${expected}`, async () => {
    const [first] = await errorsOf(model(init || "pass", forward || undefined));
    assert.match(first ?? "", expected);
  });
}

Deno.test("a name that a function assigns is its own, whatever it is called outside", async () => {
  const width = (init: string, definitions = "") =>
    trace(model(`${init}\nself.a = Linear(8, width)`, "return self.a(self.embed(tokens))", definitions))
      .then((graph) => graph.nodes.at(-1)?.outputs[0]?.type.shape[1]);
  // None is a value: it does not show the op of the same name.
  assert.equal(
    await width("rope = getattr(config, 'rope_scaling', None)\nwidth = 5 if rope is None else 6"),
    5,
  );
  assert.equal(
    await width("width = helper(None)", "def helper(silu):\n    return 5 if silu is None else 6"),
    5,
  );
  assert.equal(await width("width = [5 if len is None else 6 for len in [None]][0]"), 5);
  assert.equal(await width("width = LIMIT", "LIMIT = 5\ndef other():\n    LIMIT = 6"), 5);
  const unset = await messageOf(model("x = silu\nsilu = None"));
  assert.match(unset, /5:13: error: silu is read before it has a value/);
  assert.match(unset, /= it is assigned in this function, so it is not the silu outside/);
  assert.match(
    await messageOf(model("pass", undefined, "A = B\nB = 1")),
    /1:5: error: B is read before it has a value/,
  );
});

const UNSUPPORTED: readonly [string, RegExp][] = [
  ["while True:\n    pass", /a while statement is outside the subset/],
  ["x += 1", /\+= is outside the subset/],
  ["try:\n    pass\nexcept E:\n    pass", /a try statement/],
  ["with a:\n    pass", /a with statement/],
  ["raise ValueError()", /a raise statement/],
  ["import os", /an import statement/],
  ["x = lambda: 1", /a lambda/],
  ["x = {1: 2}", /a dictionary/],
  ["x = f'{x}'", /prefix f/],
  ["x = [1, 2][0:1]", /a slice/],
  ["x = 1 @ 2", /operator @/],
  ["x = ~1", /operator ~/],
  ["x = 1j", /no number/],
  ["x = 99999999999999999999", /no number/],
  ["x = y = 1", /one assignment a statement/],
  ["f(*a)", /unpacked arguments/],
  ["f(a=1, a=2)", /argument a is given twice/],
  ["[i for i in a for j in b]", /one `for` a comprehension/],
  ["x = (i for i in a)", /a generator expression/],
  ["x[0] = 1", /cannot assign to/],
  ["def g():\n    pass", /a function definition is outside the subset/],
  ["x = await y", /an await/],
  ["for i in a:\n    break", /a break statement/],
  ["x = (y := 3)", /a named expression/],
  ["print(*[1])", /unpacked/],
  ["exec('x')\nglobal x", /a global statement/],
];
for (const [init, expected] of UNSUPPORTED) {
  Deno.test(`outside the subset: ${expected}`, async () => {
    const errors = await errorsOf(model(init));
    assert.ok(errors.some((e) => expected.test(e) && /^[56]:/.test(e)), errors.join("\n"));
  });
}

Deno.test("structure of a file", async () => {
  const cases: readonly [string, RegExp][] = [
    ["", /there is no class/],
    ["class A(Module):\n    pass", /class A has no forward/],
    ["class A(nn.Module):\n    pass", /must derive from Module/],
    ["class A:\n    pass", /must derive from Module/],
    ["class A(Module):\n    x = 3", /cannot stand in a class body/],
    ["class A(Module):\n    def f():\n        pass", /method f has no self/],
    ["class A(Module):\n    def f(self, *x):\n        pass", /parameter \*x is outside/],
    ["class A(Module):\n    @property\n    def f(self):\n        pass", /decorated definition/],
    ["print('x')", /cannot stand outside a class/],
    ["def f():\n    pass\ndef f():\n    pass", /f is defined twice/],
    ["async def f():\n    pass", /not async/],
  ];
  for (const [source, expected] of cases) assert.match((await errorsOf(source))[0] ?? "", expected);
});
