/**
 * What each op does with work that is pending on what it reads: it absorbs it, or finds it done by an instruction of its
 * own. Instructions stand as `op(inputs)`, with the deltas that are added to an input behind it.
 */
import assert from "node:assert/strict";
import { profile } from "../../tests/fixtures/passes.ts";
import { GraphBuilder } from "../ir/build.ts";
import { frequencies } from "../ir/fixture.ts";
import { type Graph, type Node, type NodeOf, type Value, values } from "../ir/graph.ts";
import { moduleTensor, paddedOutputs } from "../ir/naming.ts";
import type { Op, Params } from "../ir/ops.ts";
import { tensor } from "../ir/types.ts";
import type { WeightFormat } from "../weights/format.ts";
import { lower } from "./lower.ts";

const Q4: WeightFormat = { kind: "q4", group: 32 };
const BF16: WeightFormat = { kind: "bf16" };
const HEAD_DIM = 4;
const HEADS = 3;
const WIDTH = HEADS * HEAD_DIM;

/** Makes graphs at stage "compensated"; values are named as they are hinted. */
class Model {
  readonly #build = new GraphBuilder("test");
  readonly tokens = this.#build.input("tokens", tensor("i32", "T"));
  readonly positions = this.#build.input("positions", tensor("i32", "T"));
  readonly x = this.node("embedding", [this.tokens], {
    ...moduleTensor("embed"),
    rows: WIDTH,
    width: WIDTH,
    format: BF16,
  }, "x");

  node<P extends Op>(op: P, inputs: readonly Value[], params: Params[P], hint: string = op): Value {
    return this.#build.node(op, inputs, params, hint)[0]!;
  }

  /** A linear without a window; a head where its output is the graph's. */
  linear(x: Value, hint: string, format = BF16, outputs = WIDTH): Value {
    return this.node("linear", [x], { weights: [{ ...moduleTensor(hint), outputs }], format }, hint);
  }

  /** Outputs of a linear named by `hints`, to which factors and, of quantised weights, rows are added. */
  corrected(x: Value, hints: readonly string[], format = Q4, outputs = WIDTH): readonly Value[] {
    const window = hints.join("_");
    const weights = hints.map((hint) => ({ ...moduleTensor(hint), outputs }));
    const made = this.#build.node("linear", [x], { weights, window, format }, hints);
    const { total } = paddedOutputs(weights);
    const factors = { window, rank: 2, outputs: total, dtype: "i8" } as const;
    const rows = { window, channels: 3, outputs: total, width: 4 } as const;
    const deltas = [
      this.node("low_rank", [x], factors, "factors"),
      ...(format.kind === "bf16" ? [] : [this.node("sparse_residual", [x], rows, "rows")]),
    ];
    const params = { window, deltas: deltas.length, slack: 0 };
    return this.#build.node("merge", [...made, ...deltas], params, hints.map((hint) => `${hint}_merged`));
  }

  norm(x: Value, path: string, epsilon = 1e-6): Value {
    return this.node("rms_norm", [x], { ...moduleTensor(path), epsilon }, path);
  }

  split(x: Value, headDim = HEAD_DIM): Value {
    return this.node("split_heads", [x], { headDim }, "heads");
  }

  merge(x: Value): Value {
    return this.node("merge_heads", [x], {}, "flat");
  }

  rope(x: Value, theta = 100): Value {
    const table = this.#build.ropeTable(frequencies(theta, HEAD_DIM));
    return this.node("rope", [x, this.positions], { table }, "rotated");
  }

  attention(q: Value, k: Value, v: Value): Value {
    return this.node("attention", [q, k, v, this.positions], { layer: 0, scale: 0.5 });
  }

  lowered(output: Value): Graph {
    const graph = this.#build.finish([output], "compensated");
    const windows = graph.nodes.flatMap((n) => n.op === "linear" && n.params.window ? [n.params.window] : []);
    const nodes = graph.nodes.map((node): Node => ({
      ...node,
      placement: { device: "cpu", causes: ["test"] },
    }));
    const budgets = windows.map((window) => ({ window, rank: 2, channels: 3, cause: "test" }));
    return lower({ ...graph, nodes, budgets }, { profile });
  }
}

/** `op(a + delta, b)`: instructions but those that make corrections. */
function instructions(graph: Graph): string[] {
  const hidden = new Set<Op>(["low_rank_down", "low_rank_up", "sparse_select", "sparse_sum", "embedding"]);
  return graph.nodes.filter((n) => !hidden.has(n.op)).map((node) =>
    `${node.op}(${node.inputs.map((name, i) => [name, ...node.added?.[i] ?? []].join(" + ")).join(", ")})`
  );
}

function only<P extends Op>(graph: Graph, op: P): NodeOf<P> {
  const found = graph.nodes.filter((n): n is Extract<Node, NodeOf<P>> => n.op === op);
  assert.equal(found.length, 1, `${found.length} of ${op}`);
  return found[0]!;
}

const Y = "y + factors + rows";

/**
 * Work on the heads of y, in this order; the instructions that do it where a reader absorbs deltas alone, and what it reads
 * then; those left where queries of attention absorb what they can.
 */
const PENDING: Readonly<
  Record<string, {
    readonly make: (m: Model, heads: Value) => Value;
    readonly done: readonly string[];
    readonly read: string;
    readonly query: { readonly done: readonly string[]; readonly read: string; readonly has: string };
  }>
> = {
  nothing: { make: (_, y) => y, done: [], read: Y, query: { done: [], read: Y, has: "" } },
  norm: {
    make: (m, y) => m.norm(y, "n"),
    done: [`rms_norm(${Y})`],
    read: "y_normed",
    query: { done: [], read: Y, has: "n" },
  },
  rope: {
    make: (m, y) => m.rope(y),
    done: [`rope(${Y}, positions)`],
    read: "y_rotated",
    query: { done: [], read: Y, has: "rope" },
  },
  "norm, rope": {
    make: (m, y) => m.rope(m.norm(y, "n")),
    done: [`rms_norm(${Y})`, "rope(y_normed, positions)"],
    read: "y_rotated",
    query: { done: [], read: Y, has: "n rope" },
  },
  "rope, norm": {
    make: (m, y) => m.norm(m.rope(y), "n"),
    done: [`rope(${Y}, positions)`, "rms_norm(y_rotated)"],
    read: "y_rotated_normed",
    query: { done: [`rope(${Y}, positions)`], read: "y_rotated", has: "n" },
  },
  "norm, norm": {
    make: (m, y) => m.norm(m.norm(y, "first"), "n"),
    done: [`rms_norm(${Y})`, "rms_norm(y_normed)"],
    read: "y_normed_normed",
    query: { done: [`rms_norm(${Y})`], read: "y_normed", has: "n" },
  },
  "rope, rope": {
    make: (m, y) => m.rope(m.rope(y), 9),
    done: [`rope(${Y}, positions)`, "rope(y_rotated, positions)"],
    read: "y_rotated_rotated",
    query: { done: [`rope(${Y}, positions)`], read: "y_rotated", has: "rope" },
  },
};

/** Readers of heads that absorb deltas alone, and their instructions where they read `x`. */
const READERS: Readonly<
  Record<string, readonly [make: (m: Model, heads: Value) => Value, made: (x: string) => string[]]>
> = {
  silu: [(m, v) => m.node("silu", [v], {}), (x) => [`silu(${x})`, "copy(silu, rows1)"]],
  add: [(m, v) => m.node("add", [v, v], {}), (x) => [`add(${x}, ${x})`, "copy(add, rows1)"]],
  mul: [(m, v) => m.node("mul", [v, v], {}), (x) => [`mul(${x}, ${x})`, "copy(mul, rows1)"]],
  silu_mul: [
    (m, v) => m.node("silu_mul", [v, v], {}),
    (x) => [`silu_mul(${x}, ${x})`, "copy(silu_mul, rows1)"],
  ],
  "an output": [(m, v) => m.merge(v), (x) => [`copy(${x}, rows1)`]],
};

for (const [work, { make, done, read }] of Object.entries(PENDING)) {
  Deno.test(`${work} pending on heads: done before whoever absorbs deltas alone`, () => {
    for (const [reader, [readBy, made]] of Object.entries(READERS)) {
      const m = new Model();
      const [y] = m.corrected(m.x, ["y"]);
      const graph = m.lowered(readBy(m, make(m, m.split(y!))));
      assert.deepEqual(instructions(graph).slice(2), [...done, ...made(read)], reader);
    }
  });
}

Deno.test("attention absorbs one norm, then one rotation, of queries and of keys", () => {
  for (const [work, { make, query }] of Object.entries(PENDING)) {
    const m = new Model();
    const [y, k, v] = m.corrected(m.x, ["y", "k", "v"]).map((value) => m.split(value)) as [
      Value,
      Value,
      Value,
    ];
    const graph = m.lowered(m.merge(m.attention(make(m, y), make(m, k), v)));
    const key = query.done.map((text) => text.replaceAll(/\by/g, "k"));
    assert.deepEqual(instructions(graph).slice(2), [
      ...query.done,
      ...key,
      `append(${query.read}, ${query.read.replaceAll(/\by/g, "k")}, v + factors + rows, positions)`,
      "attend(attention_q, positions)",
      "copy(attention, rows1)",
    ], work);
    const { qNorm, kNorm, table } = only(graph, "append").params;
    assert.deepEqual(qNorm, kNorm);
    assert.equal([qNorm?.path, table && "rope"].filter(Boolean).join(" "), query.has, work);
  }
});

Deno.test("queries and keys that rotate by different tables, or one of them alone, are rotated before", () => {
  for (const [q, k, done] of [[100, 7, 2], [100, 0, 1], [0, 100, 1]] as const) {
    const m = new Model();
    const heads = (hint: string) => m.split(m.linear(m.x, hint));
    const rotated = (x: Value, theta: number) => theta === 0 ? x : m.rope(x, theta);
    const out = m.attention(rotated(m.norm(heads("q"), "qn"), q), rotated(heads("k"), k), heads("v"));
    const graph = m.lowered(m.merge(out));
    assert.equal(graph.nodes.filter((n) => n.op === "rope").length, done);
    const { table, qNorm } = only(graph, "append").params;
    assert.equal(table, undefined);
    // A norm before a rotation cannot come after it.
    assert.equal(qNorm?.path, q === 0 ? "qn" : undefined);
  }
});

Deno.test("queries and keys have norms and epsilons of their own", () => {
  const m = new Model();
  const heads = (hint: string) => m.split(m.linear(m.x, hint));
  const out = m.attention(m.norm(heads("q"), "qn", 0.5), m.norm(heads("k"), "kn", 0.25), heads("v"));
  const { qNorm, kNorm } = only(m.lowered(m.merge(out)), "append").params;
  assert.deepEqual([qNorm, kNorm], [{ path: "qn", epsilon: 0.5 }, { path: "kn", epsilon: 0.25 }]);
});

Deno.test("a norm of values is done before; what is pending is done once for all readers", () => {
  const m = new Model();
  const [y] = m.corrected(m.x, ["y"]);
  const v = m.norm(m.split(y!), "n");
  const out = m.attention(m.split(m.linear(m.x, "q")), v, v);
  const sum = m.node("add", [m.merge(out), m.merge(v)], {});
  assert.deepEqual(instructions(m.lowered(sum)).slice(2), [
    "linear(x)",
    `rms_norm(${Y})`,
    `append(q, ${Y}, y_normed, positions)`,
    "attend(attention_q, positions)",
    "add(attention, y_normed)",
    "copy(add, rows1)",
  ]);
});

Deno.test("a norm over flat columns of a linear of several is no head's norm", () => {
  const m = new Model();
  const [q, k, v] = m.corrected(m.x, ["q", "k", "v"]) as [Value, Value, Value];
  const heads = (x: Value, path: string) => m.rope(m.split(m.norm(x, path)));
  const graph = m.lowered(m.merge(m.attention(heads(q, "qn"), heads(k, "kn"), m.split(v))));
  assert.deepEqual(instructions(graph).slice(2), [
    "rms_norm(q + factors + rows)",
    "rms_norm(k + factors + rows)",
    "append(qn, kn, v + factors + rows, positions)",
    "attend(attention_q, positions)",
    "copy(attention, rows1)",
  ]);
  const { qNorm, kNorm, table } = only(graph, "append").params;
  assert.deepEqual([qNorm, kNorm, table], [undefined, undefined, "rope_0"]);
});

Deno.test("a window may have more linears than a merge of one or two", () => {
  const m = new Model();
  const hints = Array.from({ length: 9 }, (_, i) => `w${i}`);
  const graph = m.lowered(m.corrected(m.x, hints)[8]!);
  assert.equal(only(graph, "linear").outputs.length, 9);
  assert.equal(instructions(graph).at(-1), "copy(w8 + factors + rows, rows1)");
});

Deno.test("logits that something reads are made of all tokens, and those asked for are copied", () => {
  const m = new Model();
  const logits = m.linear(m.norm(m.x, "n"), "head");
  m.node("silu", [logits], {});
  assert.deepEqual(instructions(m.lowered(logits)), [
    "rms_norm(x)",
    "linear(n)",
    "silu(head)",
    "copy(head, rows)",
  ]);
});

Deno.test("flat values: norms, sums and products absorb deltas; linears and corrections read a sum", () => {
  const cases: readonly (readonly [(m: Model, y: Value) => Value, readonly string[]])[] = [
    [(m, y) => m.norm(y, "n"), [`rms_norm(${Y})`, "copy(n, rows1)"]],
    [
      (m, y) => m.node("add_rms_norm", [m.x, y], { ...moduleTensor("n"), epsilon: 1 }),
      [`add_rms_norm(x, ${Y})`, "copy(add_rms_norm, rows1)"],
    ],
    [(_, y) => y, [`copy(${Y}, rows1)`]],
    [(m, y) => m.node("silu", [m.linear(y, "z")], {}), [
      `copy(${Y})`,
      "linear(y_sum)",
      "silu(z)",
      "copy(silu, rows1)",
    ]],
    [(m, y) => m.corrected(y, ["z"])[0]!, [
      `copy(${Y})`,
      "quantize(y_sum)",
      "linear(y_sum_codes)",
      "copy(z + factors1 + rows1, rows2)",
    ]],
  ];
  for (const [read, expected] of cases) {
    const m = new Model();
    const graph = m.lowered(read(m, m.corrected(m.x, ["y"])[0]!));
    assert.deepEqual(instructions(graph).slice(2), expected);
  }
});

Deno.test("the rows asked for: made by the head's norm, copied where others read it or nothing can make them", () => {
  const rows = (make: (m: Model) => Value) => {
    const m = new Model();
    return instructions(m.lowered(make(m)));
  };
  assert.deepEqual(rows((m) => m.linear(m.norm(m.x, "n"), "head")), ["rms_norm(x, rows)", "linear(n)"]);
  assert.deepEqual(rows((m) => m.linear(m.x, "head")), ["copy(x, rows)", "linear(x_rows)"]);
  const both = (m: Model, read: (normed: Value) => void) => {
    const normed = m.norm(m.x, "n");
    const head = m.linear(normed, "head", Q4);
    read(normed);
    return head;
  };
  // Whoever reads it stands after the head, and reads all tokens.
  assert.deepEqual(rows((m) => both(m, (n) => m.node("add", [n, m.x], {}))), [
    "rms_norm(x)",
    "add(n, x)",
    "copy(n, rows)",
    "quantize(n_rows)",
    "linear(n_rows_codes)",
  ]);
  assert.deepEqual(rows((m) => both(m, () => {})), ["rms_norm(x, rows)", "linear(n_codes)"]);
  // A norm of heads that is read merged, twice.
  assert.deepEqual(
    rows((m) => {
      const normed = m.norm(m.split(m.x), "n");
      const head = m.linear(m.merge(normed), "head");
      m.node("add", [m.merge(normed), m.x], {});
      return head;
    }),
    ["rms_norm(x)", "add(x_normed, x)", "copy(x_normed, rows)", "linear(flat_rows)"],
  );
});

Deno.test("codes come with the norm or product that linears read, where they agree on a group", () => {
  const made = (...groups: (32 | 64)[]) => {
    const m = new Model();
    const normed = m.norm(m.x, "n");
    const outputs = groups.map((group, i) => m.linear(normed, `w${i}`, { kind: "q4", group }));
    const sum = outputs.reduce((a, b) => m.node("add", [a, b], {}));
    return instructions(m.lowered(m.node("silu", [sum], {})));
  };
  assert.deepEqual(made(64).slice(0, 2), ["rms_norm(x)", "linear(n_codes)"]);
  assert.deepEqual(made(64, 64).slice(0, 3), ["rms_norm(x)", "linear(n_codes)", "linear(n_codes)"]);
  assert.deepEqual(made(32, 64).slice(0, 5), [
    "rms_norm(x)",
    "quantize(n)",
    "linear(n_codes)",
    "quantize(n)",
    "linear(n_codes1)",
  ]);
});

Deno.test("instructions take over the placement of what they come from, and say why they are there", () => {
  const m = new Model();
  const [y] = m.corrected(m.x, ["y"]);
  const graph = m.lowered(m.node("silu", [m.norm(m.split(y!), "n")], {}));
  assert.deepEqual(only(graph, "rms_norm").placement.causes, [
    "test",
    "done apart: its reader absorbs no norm",
  ]);
  assert.deepEqual(only(graph, "sparse_sum").placement.causes, ["test"]);
  for (const node of graph.nodes) {
    assert.equal(node.placement.device, "cpu");
    assert.ok(node.placement.microseconds !== undefined);
  }
  assert.equal(values(graph).get("y")?.type.shape[0], "T");
});
