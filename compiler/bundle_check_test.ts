import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openBundle } from "./bundle.ts";
import { checkGraph, checkTensors } from "./bundle_check.ts";
import { COMPILE_DEFAULTS, compileModel } from "./compile.ts";
import type { Graph, Node } from "./ir/graph.ts";
import { tensor } from "./ir/types.ts";
import { type Plan, Plan as PlanSchema } from "./plan.ts";
import { genericProfile } from "./profile.ts";
import { readSafetensors } from "./weights/safetensors.ts";
import { writeTinyModel } from "../tests/fixtures/tiny_model.ts";

type Edit = (plan: Plan) => Plan;

/** Tells what is wrong with an edited plan of a tiny model that has both forms of correction. */
async function withChecker(test: (problem: (edit: Edit) => string | undefined) => void): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-check-"));
  try {
    const [model, output] = [join(folder, "model"), join(folder, "bundle")];
    writeTinyModel(model, { tied: true });
    const budget = { kind: "rank+channels", rank: 2, channels: 4 } as const;
    const options = { ...COMPILE_DEFAULTS, correct: "both", budget, maxRank: 4, threads: 2 } as const;
    await compileModel({ ...options, profile: genericProfile(2), model, output });
    using bundle = openBundle(output);
    const { tensors } = readSafetensors(bundle.mapping.bytes, output);
    test((edit) => {
      const plan = PlanSchema.parse(structuredClone(edit(bundle.plan)));
      return checkGraph(plan) ?? checkTensors(plan, tensors);
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const withGraph = (change: (graph: Graph) => Partial<Graph>): Edit => (plan) => ({
  ...plan,
  graph: { ...plan.graph, ...change(plan.graph) },
});

/** Replaces every node that `change` gives something else for. */
const eachNode = (change: (node: Node) => Node): Edit =>
  withGraph(({ nodes }) => ({ nodes: nodes.map(change) }));

/** The first input of the first node that is an `op`. */
function inputOf(nodes: readonly Node[], op: Node["op"]): string {
  return nodes.find((node) => node.op === op)?.inputs[0] ?? "";
}

Deno.test("a plan as it was compiled has no fault", () =>
  withChecker((problem) => assert.equal(problem((plan) => plan), undefined)));

Deno.test("a name stands for one weight, one store, one lane", () =>
  withChecker((problem) => {
    const weights = (change: (weights: Plan["weights"]) => Plan["weights"]): Edit => (plan) => ({
      ...plan,
      weights: change(plan.weights),
    });
    assert.match(
      problem(weights((w) => [...w, ...w.slice(1, 2)])) ?? "",
      /two packed weights are in the tensor/,
    );
    const renamed = weights((
      w,
    ) => [...w, ...w.slice(1, 2).map((one) => ({ ...one, tensor: "other.packed" }))]);
    assert.match(problem(renamed) ?? "", /is in the tensor other\.packed/);
    const more = weights((w) => [
      ...w,
      ...w.slice(1, 2).map((one) => ({
        ...one,
        tensor: "other.packed",
        sections: [{ path: "other", firstRow: 0, rows: one.rows, relativeError: 0 }],
      })),
    ]);
    assert.match(problem(more) ?? "", /packed weights, its graph reads/);
    assert.match(problem(weights((w) => w.slice(1))) ?? "", /packed weights, its graph reads/);
    const stores: Edit = (plan) => ({ ...plan, windows: [...plan.windows, ...plan.windows.slice(0, 1)] });
    assert.match(problem(stores) ?? "", /window 0\.qkv is stored twice/);
    const twoLanes: Edit = (plan) => ({
      ...plan,
      lanes: plan.lanes.map((l) => ({ ...l, lane: "backbone" })),
    });
    assert.match(problem(twoLanes) ?? "", /two lanes backbone/);
  }));

Deno.test("nodes run where they say, on a device there is", () =>
  withChecker((problem) => {
    const crossed: Edit = (plan) => ({
      ...plan,
      lanes: plan.lanes.map((l) => ({ ...l, lane: l.lane === "backbone" ? "compensation" : "backbone" })),
    });
    assert.match(problem(crossed) ?? "", /which is not its own/);
    const swapped = eachNode((node) => ({
      ...node,
      placement: {
        ...node.placement,
        lane: node.placement.lane === "backbone" ? "compensation" : "backbone",
      },
    }));
    assert.match(problem((plan) => swapped(crossed(plan))) ?? "", /corrections, and nothing else/);
    const device = (plan: Plan): Plan =>
      JSON.parse(JSON.stringify(plan).replaceAll('"device":"cpu"', '"device":"tpu"'));
    assert.match(
      problem((plan) => ({ ...plan, graph: device(plan).graph })) ?? "",
      /runs on no known device/,
    );
  }));

Deno.test("a weight or a norm is used at one width", () =>
  withChecker((problem) => {
    // A head of the tied embedding that reads the wider activations inside the last MLP.
    const wide = withGraph(({ nodes }) => {
      const inner = nodes.findLast((n) => n.op === "silu_mul")?.outputs[0];
      const at = nodes.length - 1;
      return { nodes: nodes.map((n, i) => i === at && inner ? { ...n, inputs: [inner.name] } : n) };
    });
    assert.match(problem(wide) ?? "", /model\.embed_tokens is used at the widths 50 and 90/);
    // A second norm of the activations inside an MLP, with the path of one of the stream.
    const norm: Edit = (plan) => {
      const inner = plan.graph.nodes.find((node) => node.op === "silu_mul")?.outputs[0];
      const norm = plan.graph.nodes.find((node) => node.op === "rms_norm");
      assert.ok(inner && norm?.op === "rms_norm");
      const made = { name: "again", type: tensor("f32", "T", 90) };
      const node: Node = { ...norm, inputs: [inner.name], outputs: [made] };
      const nodes = [...plan.graph.nodes, node];
      const lanes = plan.lanes.map((l) =>
        l.lane === "backbone" ? { ...l, steps: [...l.steps, { run: nodes.length - 1 }] } : l
      );
      return { ...plan, graph: { ...plan.graph, nodes }, lanes };
    };
    assert.match(problem(norm) ?? "", /input_layernorm\.weight is used at the widths 50 and 90/);
  }));

Deno.test("a window's corrections are those of its linear, all of it, once", () =>
  withChecker((problem) => {
    const otherInput = withGraph(({ nodes }) => {
      const stream = inputOf(nodes, "linear");
      return {
        nodes: nodes.map((n) =>
          n.op === "low_rank" && n.params.window === "0.o" ? { ...n, inputs: [stream] } : n
        ),
      };
    });
    assert.match(problem(otherInput) ?? "", /correction of window 0\.o is not of its linear/);
    // A merge of the query alone: its deltas are then as wide as that one section, and the others are read unmerged.
    const one = withGraph(({ nodes }) => {
      const whole = nodes.find((n) => n.op === "merge" && n.params.window === "0.qkv");
      const unmerged = new Map(
        whole?.outputs.slice(1).map(({ name }, i) => [name, whole.inputs[i + 1] ?? ""]),
      );
      const outputs = 48;
      return {
        nodes: nodes.map((node): Node => {
          const narrow = node.outputs.map(({ name }) => ({ name, type: tensor("f32", "T", outputs) }));
          if (node.op === "low_rank" && node.params.window === "0.qkv") {
            return { ...node, params: { ...node.params, outputs }, outputs: narrow };
          }
          if (node.op === "sparse_residual" && node.params.window === "0.qkv") {
            return { ...node, params: { ...node.params, outputs }, outputs: narrow };
          }
          if (node !== whole) {
            return {
              ...node,
              inputs: node.inputs.map((name) => unmerged.get(name) ?? name),
            };
          }
          const [q = ""] = node.inputs;
          return { ...node, inputs: [q, ...node.inputs.slice(3)], outputs: node.outputs.slice(0, 1) };
        }),
      };
    });
    assert.match(problem(one) ?? "", /correction of window 0\.qkv is not of its linear/);
    const twice = eachNode((node) => {
      if (node.op !== "merge" || node.params.window !== "0.o") return node;
      const delta = node.inputs.at(-1) ?? "";
      return { ...node, inputs: [...node.inputs, delta], params: { ...node.params, deltas: 3 } };
    });
    assert.match(problem(twice) ?? "", /window 0\.o adds something else than one correction of each form/);
    const never = eachNode((node) => {
      if (node.op !== "merge" || node.params.window !== "0.o") return node;
      return {
        ...node,
        inputs: node.inputs.slice(0, -1),
        params: { ...node.params, deltas: node.params.deltas - 1 },
      };
    });
    assert.match(problem(never) ?? "", /a correction of window 0\.o is never added/);
  }));
