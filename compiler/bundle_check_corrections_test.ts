import assert from "node:assert/strict";
import type { Graph, Node } from "./ir/graph.ts";
import type { Op } from "./ir/ops.ts";
import type { Plan } from "./plan.ts";
import { byThreshold } from "../tests/fixtures/thresholds.ts";
import {
  beforeLast,
  type Edit,
  f32,
  find,
  first,
  params,
  withChecker,
  withGraph,
  withNodes,
} from "../tests/fixtures/edited_plan.ts";

Deno.test("a window's corrections are those of its linear", () =>
  withChecker((problem) => {
    const other = (op: Op, window: string, input: string) => first(op, () => ({ inputs: [input] }), window);
    assert.match(problem(other("low_rank_down", "0.o", "x1")), /reads x1, its window's linear reads x2/);
    assert.match(problem(other("sparse_select", "0.o", "x1")), /reads x1, its window's linear reads x2/);
    assert.match(
      problem(other("sparse_sum", "0.o", "rows_0_qkv_chosen")),
      /expects the sparse_select of window 0\.o/,
    );
    assert.match(
      problem(other("low_rank_up", "0.o", "factors_0_qkv_hidden")),
      /expects the low_rank_down of window 0\.o/,
    );
    for (const op of ["low_rank_up", "sparse_sum"] as const) {
      const narrow = first(op, (node) => ({
        params: { ...node.params, outputs: 48 },
        outputs: node.outputs.map(({ name }) => f32(name, 48)),
      }), "0.qkv");
      assert.match(problem(narrow), /makes 48 columns, its window's linear 80/);
    }
    assert.match(problem(params("low_rank_down", { window: "0.down" })), /is not sound/);
    assert.match(problem(params("low_rank_down", { window: "9.o" })), /no linear belongs to window 9\.o/);
    for (const threshold of [0, -1, 1e39, null, "0.5"]) {
      assert.match(
        problem(first("sparse_select", (n) => ({ params: { ...n.params, threshold, expected: 1 } }), "0.o")),
        /a threshold must be a positive number of f32/,
      );
    }
    assert.match(
      problem(params("sparse_select", { threshold: 1, expected: 1 })),
      /expects the sparse_select/,
    );
    assert.match(problem(params("sparse_sum", { expected: 1 })), /expects the sparse_select/);
    assert.equal(problem(withGraph((graph) => byThreshold(graph, 1))), "");
    const twice = withNodes((nodes) =>
      beforeLast(nodes, { ...find(nodes, "low_rank_up", "0.o"), outputs: [f32("again", 64)] })
    );
    assert.match(problem(twice), /low_rank_up of window 0\.o stands twice/);
  }));

Deno.test("a window's corrections are those that are stored", () =>
  withChecker((problem) => {
    const refused = (edit: Edit) => assert.match(problem(edit), /correction of window .* is not what/);
    const width = (op: Op, changed: object) =>
      first(op, (n) => ({ params: { ...n.params, ...changed } }), "0.o");
    for (const op of ["sparse_select", "sparse_sum"] as const) {
      refused(width(op, { width: 8 }));
      refused(width(op, { width: undefined }));
    }
    const both = (changed: object): Edit => (plan) =>
      width("low_rank_up", changed)(width("low_rank_down", changed)(plan));
    refused(both({ dtype: "bf16" }));
    refused(both({ dtype: undefined }));
    for (const residual of [5, 0, null, "4"]) refused(width("linear", { residual }));
    // A residual alone, of a store that says that it is of a smaller linear.
    const store = (changed: Partial<Plan["windows"][number]>): Edit => (plan) => {
      const isOfWindow = (node: Node) => "window" in node.params && node.params.window === "0.o";
      const bare = withNodes((nodes) =>
        nodes.filter((n) => !isOfWindow(n) || n.op === "linear").map((n): Node =>
          n.added?.flat().includes("rows_0_o") ? Object.assign({}, n, { added: n.inputs.map(() => []) }) : n
        )
      )(plan);
      const windows = plan.windows.map((w) => w.window === "0.o" ? { ...w, ...changed } : w);
      return { ...bare, windows };
    };
    assert.equal(problem(store({})), "");
    // 64 to 128 outputs of 4 bits take as many bytes.
    assert.match(problem(store({ outputs: 63 })), /residual\.output_scale is F32 \[64\]/);
    assert.match(problem(store({ inputs: 35 })), /residual\.codes is/);
    const linears: Edit = withNodes((nodes) => {
      const renamed: Record<string, string> = { "0.o": "0.down", "0.down": "0.o" };
      return nodes.map((node) => {
        const window = "window" in node.params ? node.params.window : undefined;
        return window === undefined || !(window in renamed)
          ? node
          : Object.assign({}, node, { params: { ...node.params, window: renamed[window] } });
      });
    });
    assert.match(
      problem((plan) => ({ ...linears(plan), graph: budgeted(linears(plan).graph) })),
      /is not what/,
    );
    refused((plan) => ({ ...plan, windows: plan.windows.slice(1) }));
    refused((plan) => ({ ...plan, windows: plan.windows.map((w) => ({ ...w, factors: null })) }));
    refused((plan) => ({ ...plan, windows: plan.windows.map((w) => ({ ...w, residual: null })) }));
  }));

/** Budgets in the order of the linears, which a graph with other windows needs. */
function budgeted(graph: Graph): Graph {
  const windows = graph.nodes.flatMap((n) => n.op === "linear" && n.params.window ? [n.params.window] : []);
  return { ...graph, budgets: windows.map((w) => graph.budgets.find((b) => b.window === w)!) };
}

Deno.test("deltas are added to outputs of their window's linear, by those who can, in one order", () =>
  withChecker((problem) => {
    const deltas = (op: Op, change: (added: readonly (readonly string[])[]) => unknown) =>
      first(op, (node) => ({ added: change(node.added ?? node.inputs.map(() => [])) }));
    const [qkv, o] = [["factors_0_qkv", "rows_0_qkv"], ["factors_0_o", "rows_0_o"]];
    assert.match(
      problem(deltas("append", () => [o, qkv, qkv, []])),
      /is not defined before it|another window/,
    );
    assert.match(
      problem(deltas("add_rms_norm", () => [[], qkv])),
      /adds factors_0_qkv to x4, of another window/,
    );
    assert.match(problem(deltas("add_rms_norm", () => [o, o])), /adds factors_0_o to x, of another window/);
    assert.match(problem(deltas("add_rms_norm", () => [[], o.toReversed()])), /adds deltas out of order/);
    assert.match(problem(deltas("add_rms_norm", () => [[], [...o, ...o]])), /adds deltas out of order/);
    assert.match(problem(deltas("add_rms_norm", () => [[], ["x4"]])), /adds x4, which is no delta/);
    assert.match(problem(deltas("add_rms_norm", () => [[], ["rows_0_o_chosen"]])), /which is no delta/);
    assert.match(problem(deltas("add_rms_norm", () => [[], ["gate"]])), /which is not defined before it/);
    assert.match(problem(deltas("add_rms_norm", () => [[]])), /deltas of other inputs than its own/);
    assert.match(problem(deltas("quantize", () => [qkv])), /which quantize reads without/);
    assert.match(problem(deltas("attend", () => [qkv, []])), /which attend reads without/);
    const read = first(
      "add_rms_norm",
      ({ inputs: [x] }) => ({ inputs: [x, "factors_0_o"], added: undefined }),
    );
    assert.match(problem(read), /reads the correction factors_0_o|of one shape/);
  }));

Deno.test("deltas that nobody adds, or only some readers do, are what the graph says: its sums are in memory and no more", () =>
  withChecker((problem) => {
    assert.equal(problem(first("add_rms_norm", () => ({ added: undefined }))), "");
    assert.equal(problem(first("append", ({ added }) => ({ added: [added![0], [], [], []] }))), "");
  }));
