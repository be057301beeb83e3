/** Imports: what a name may come from, and mistakes in files that are imported. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HcinferError } from "../errors.ts";
import type { Graph } from "../ir/graph.ts";
import { model, QWEN3 } from "../../tests/models/descriptions.ts";
import { traceModel } from "./trace.ts";

/** Traces `model.py` among `files`, in a folder of their own, which messages do not name. */
async function trace(source: string, files: Readonly<Record<string, string>> = {}): Promise<Graph> {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-files-"));
  try {
    for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
    return await traceModel({ source, file: join(folder, "model.py"), config: QWEN3 });
  } catch (error) {
    if (!(error instanceof HcinferError)) throw error;
    throw new HcinferError(error.kind, error.message.replaceAll(`${folder}/`, ""));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function messageOf(source: string, files: Readonly<Record<string, string>> = {}): Promise<string> {
  try {
    await trace(source, files);
  } catch (error) {
    assert.ok(error instanceof HcinferError, String(error));
    return error.message;
  }
  assert.fail("expected diagnostics, found a graph");
}

const PAIR = `class Pair(Module):
    def __init__(self, width):
        self.a = Linear(width, WIDTH)
    def forward(self, x):
        return self.a(helper(x))
WIDTH = 8
def helper(x):
    return silu(x)
`;

Deno.test("names come from a file beside the description, and each file's own names stay its own", async () => {
  const source = model(
    "self.pair = Pair(8)\nself.b = Linear(WIDTH, 5)",
    "return self.b(self.pair(self.embed(tokens)))",
    "from pair import Pair\nWIDTH = 8\ndef helper(x):\n    return x",
  );
  const graph = await trace(source, { "pair.py": PAIR });
  assert.deepEqual(graph.nodes.map((n) => n.op), ["embedding", "silu", "linear", "linear"]);
  assert.equal(graph.architecture, "model");
});

Deno.test("an import may come by way of another file, and twice", async () => {
  const graph = await trace(
    model("self.pair = Pair(WIDTH)", undefined, "from middle import Pair\nfrom pair import WIDTH"),
    { "pair.py": PAIR, "middle.py": "from pair import Pair\n" },
  );
  assert.equal(graph.nodes.length, 1);
});

Deno.test("a module that a constant holds is not the model, and has no name", async () => {
  const shared = "SHARED = Pair(8)\n";
  const source = model("pass", "return SHARED(self.embed(tokens))", `from pair import Pair\n${shared}`);
  assert.match(await messageOf(source, { "pair.py": PAIR }), /this Linear has no name/);
});

Deno.test("shared descriptions are found from any folder, and a file beside hides them", async () => {
  const source = model("self.mlp = MLP(config)", undefined, "from decoder import MLP");
  assert.equal((await trace(source)).nodes.length, 1);
  assert.match(await messageOf(source, { "decoder.py": "" }), /decoder.py defines no MLP/);
});

Deno.test("mistakes in an imported file name its own file, line and source, those of all files at once", async () => {
  const broken = PAIR.replace("silu(x)", "slu(x)").replace("WIDTH)", "WIDHT)");
  assert.equal(
    await messageOf(model("self.pair = Pairs(8)", undefined, "from pair import Pair"), { "pair.py": broken }),
    `pair.py:3:32: error: WIDHT is not defined; did you mean "WIDTH"?
    3 |         self.a = Linear(width, WIDHT)
      |                                ^~~~~

pair.py:8:12: error: slu is not defined; did you mean "silu"?
    8 |     return slu(x)
      |            ^~~

model.py:5:21: error: Pairs is not defined; did you mean "Pair"?
    5 |         self.pair = Pairs(8)
      |                     ^~~~~`,
  );
  const traced = await messageOf(
    model("self.pair = Pair(9)", "return self.pair(self.embed(tokens))", "from pair import Pair"),
    { "pair.py": PAIR },
  );
  assert.match(
    traced,
    /^pair\.py:5:23: error: Linear: pair.a expects 9 inputs[^]*while tracing pair \(Pair\)$/,
  );
});

const REFUSED: readonly [string, RegExp][] = [
  ["from nothing import A", /1:6: error: there is no nothing.py beside model.py or in graphs\/shared/],
  ["from torch import nn", /no torch.py[^]*layers and ops are built in/],
  ["from pair import Pairs", /1:18: error: pair.py defines no Pairs; did you mean "Pair"\?/],
  ["from pair import silu", /pair.py defines no silu/],
  [
    "from pair import *",
    /this import is outside the subset[^]*accepted, at the top of a file: from decoder import/,
  ],
  ["from pair import Pair as P", /this import is outside the subset/],
  ["from .pair import Pair", /this import is outside the subset/],
  ["from a.pair import Pair", /this import is outside the subset/],
  ["import pair", /an import statement is outside the subset/],
  ["from pair import Pair\nPair = 3", /2:1: error: Pair is defined twice/],
  [
    "from loop import A",
    /loop2.py:1:6: error: these files import each other: loop.py -> loop2.py -> loop.py\n/,
  ],
  ["from self import A", /self.py:1:6: error: these files import each other: self.py -> self.py/],
  ["from model import A", /import each other: model.py -> model.py|no model.py/],
  ["from syntax import A", /^syntax.py:1:5: error: "\(" is never closed/],
  ["from deep import A", /^deep.py:1:5: error: B is read before it has a value/],
];
for (const [line, expected] of REFUSED) {
  Deno.test(`imports are refused: ${line.replace("\n", "; ")}`, async () => {
    const files = {
      "pair.py": PAIR,
      "loop.py": "from loop2 import A\n",
      "loop2.py": "from loop import A\n",
      "self.py": "from self import A\n",
      "syntax.py": "A = (\n",
      "deep.py": "A = B\nB = 1\n",
    };
    assert.match(await messageOf(model("pass", undefined, line), files), expected);
  });
}
