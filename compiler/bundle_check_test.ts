import assert from "node:assert/strict";
import type { Device, Lane, Node, NodeOf, RopeTable } from "./ir/graph.ts";
import type { Params } from "./ir/ops.ts";
import type { Plan } from "./plan.ts";
import { PROFILES } from "./profile.ts";
import { replan } from "./replan.ts";
import {
  beforeLast,
  type Edit,
  f32,
  find,
  first,
  params,
  text,
  withChecker,
  withGraph,
  withNodes,
} from "../tests/fixtures/edited_plan.ts";

Deno.test("a plan as it was compiled has no fault", () =>
  withChecker((problem) => {
    assert.equal(problem((plan) => plan), "");
    assert.equal(problem(withGraph((graph) => graph)), "");
  }));

Deno.test("a plan with a GPU: its lanes, memory and threads are those that follow from its devices", () =>
  withChecker((problem) => {
    const onGpu: Edit = (plan) => replan(plan, { profile: PROFILES["rtx-4060-laptop"] });
    const edited = (change: Edit): Edit => (plan) => change(onGpu(plan));
    assert.equal(problem(onGpu), "");
    assert.equal(problem(edited(withGraph((graph) => graph))), "");
    const another: Edit = (plan) => ({
      ...plan,
      graph: { ...plan.graph, nodes: plan.graph.nodes.map((node) => onLane(node, "gpu", "backbone")) },
    });
    assert.match(problem(another), /its graph is not sound: .*corrections run on the CPU, not on the GPU/);
    assert.match(
      problem(edited(first("embedding", (node) => onLane(node, "gpu", "compensation")))),
      /is on the lane "compensation", expected backbone/,
    );
    const moved = edited((plan) => ({
      ...plan,
      graph: {
        ...plan.graph,
        nodes: plan.graph.nodes.map((node, i) => i === 0 ? onLane(node, "cpu", "compensation") : node),
      },
    }));
    assert.equal(problem(moved), "its lanes are not those of its graph");
    assert.match(
      problem(edited(first("attend", (node) => onLane(node, "cpu", "compensation")))),
      /runs on the cpu, and the cache of layer 0 is on the gpu/,
    );
    const threads = (compensationThreads: number): Edit => (plan) => ({
      ...plan,
      corrections: { ...plan.corrections, compensationThreads },
    });
    assert.match(problem(edited(threads(1))), /which does not fit its devices/);
    assert.match(problem(threads(2)), /which does not fit its devices/);
    const prefill: Edit = (plan) => ({ ...plan, corrections: { ...plan.corrections, prefill: "cpu" } });
    assert.match(problem(edited(prefill)), /its prompts have rows from the CPU/);
    assert.equal(problem(prefill), "");
  }));

function onLane(node: Node, device: Device, lane: Lane): Node {
  return { ...node, placement: { ...node.placement, device, lane } };
}

Deno.test("a name stands for one weight and one store", () =>
  withChecker((problem) => {
    const weights = (change: (weights: Plan["weights"]) => Plan["weights"]): Edit => (plan) => ({
      ...plan,
      weights: change(plan.weights),
    });
    const again = (changed: Partial<Plan["weights"][number]>) =>
      weights((w) => [...w, ...w.slice(1, 2).map((one) => ({ ...one, ...changed }))]);
    assert.match(problem(again({})), /two packed weights are in the tensor/);
    assert.match(problem(again({ tensor: "other.packed" })), /is in the tensor other\.packed/);
    const other = [{ path: "other", firstRow: 0, rows: 80, relativeError: 0 }];
    assert.match(
      problem(again({ tensor: "other.packed", sections: other })),
      /packed weights, its graph reads/,
    );
    assert.match(problem(weights((w) => w.slice(1))), /packed weights, its graph reads/);
    const stores: Edit = (plan) => ({ ...plan, windows: [...plan.windows, ...plan.windows.slice(0, 1)] });
    assert.match(problem(stores), /window 0\.qkv is stored twice/);
    const vectors: Edit = (plan) => ({ ...plan, vectors: { ...plan.vectors, "model.norm.weight": 51 } });
    assert.match(problem(vectors), /its vectors are not those of its graph/);
  }));

Deno.test("lanes are those that follow from the graph, whatever others would do", () =>
  withChecker((problem) => {
    const lanes = (change: (lane: Plan["lanes"][number], n: number) => object): Edit => (plan) => ({
      ...plan,
      lanes: plan.lanes.map((lane, n) => ({ ...lane, ...change(lane, n) })),
    });
    const compensation = (change: (steps: Plan["lanes"][number]["steps"]) => object[]) =>
      lanes(({ steps }, n) => n === 1 ? { steps: change(steps) } : {});
    const attacks: Record<string, Edit> = {
      "two of one name": lanes(() => ({ lane: "backbone" })),
      "names exchanged": lanes((_, n) => ({ lane: n === 1 ? "backbone" : "compensation" })),
      "instructions after the last signal": compensation((steps) => [...steps, steps[1]!]),
      "a second wait": compensation((steps) => [...steps.slice(0, 1), ...steps]),
      "never waits": compensation((steps) => steps.filter((step) => !("wait" in step))),
      "never signals": compensation((steps) => steps.filter((step) => !("signal" in step))),
      "other order": compensation((steps) => steps.toReversed()),
      "a huge event": lanes(({ steps }) => ({
        steps: steps.map((step) =>
          "run" in step ? step : "wait" in step ? { wait: 2 ** 30 } : {
            signal: 2 ** 30,
          }
        ),
      })),
      "a node that is none": lanes(({ steps }) => ({ steps: [...steps, { run: 9999 }] })),
      "one": (plan) => ({ ...plan, lanes: plan.lanes.slice(0, 1) }),
      "three": (plan) => ({ ...plan, lanes: [...plan.lanes, ...plan.lanes.slice(1)] }),
      "none": (plan) => ({ ...plan, lanes: [] }),
    };
    for (const [name, edit] of Object.entries(attacks)) {
      assert.equal(problem(edit), "its lanes are not those of its graph", name);
    }
  }));

Deno.test("memory is laid out as the graph needs it", () =>
  withChecker((problem) => {
    const memory = (change: (memory: Plan["memory"]) => Partial<Plan["memory"]>): Edit => (plan) => ({
      ...plan,
      memory: { ...plan.memory, ...change(plan.memory) },
    });
    const offsets = (change: (entries: [string, number][]) => [string, number][]) =>
      memory((m) => ({ offsets: Object.fromEntries(change(Object.entries(m.offsets))) }));
    const attacks: Record<string, Edit> = {
      "all at 0": offsets((all) => all.map(([name]) => [name, 0])),
      "one elsewhere": offsets((all) =>
        all.map(([name, offset], i) => [name, i === 3 ? offset + 64 : offset])
      ),
      "one missing": offsets((all) => all.slice(1)),
      "one more": offsets((all) => [...all, ["other", 0]]),
      "too small": memory(() => ({ bytesPerToken: 64 })),
      "0": memory(() => ({ bytesPerToken: 0 })),
      "huge": memory(() => ({ bytesPerToken: 2 ** 50 })),
    };
    for (const [name, edit] of Object.entries(attacks)) {
      assert.equal(problem(edit), "its memory is not laid out for its graph", name);
    }
    assert.throws(() => problem(offsets((all) => all.map(([name]) => [name, -64]))), /expected number to be/);
  }));

Deno.test("a graph is of instructions, placed where there is something to run them", () =>
  withChecker((problem) => {
    for (const stage of ["traced", "fused", "quantized", "placed", "budgeted", "compensated"] as const) {
      assert.match(
        problem(withGraph(() => ({ stage }))),
        /is not sound: .* is not legal|budgets are not legal/,
      );
    }
    assert.match(problem(text('"stage":"scheduled"', '"stage":"done"')), /unknown stage/);
    assert.match(problem(text('"device":"cpu"', '"device":"tpu"')), /runs on no known device, "tpu"/);
    assert.match(problem(text('"lane":"backbone"', '"lane":"other"')), /lane "other", expected backbone/);
    assert.match(
      problem(text('"lane":"backbone"', '"lane":"compensation"')),
      /lane "compensation", expected backbone/,
    );
    assert.match(problem(text('"group":64', '"group":"64"')), /its format is none/);
    assert.match(problem(text('"kind":"q4"', '"kind":"q5"')), /its format is none/);
    const copy = (i: number, from: string, name: string): Node => ({
      op: "copy",
      inputs: [from],
      outputs: [f32(`${name}${i}`, 50)],
      params: {},
      placement: { device: "cpu", lane: "backbone", causes: [] },
    });
    const many = (count: number): Edit => (plan) => ({
      ...plan,
      graph: {
        ...plan.graph,
        nodes: beforeLast(
          plan.graph.nodes,
          ...Array.from({ length: count }, (_, i) => copy(i, "x", "more")),
        ),
      },
    });
    assert.match(problem(many(20_000)), /graph has \d+ nodes, at most 20000/);
  }));

Deno.test("inputs are the step's, and rows know no positions", () =>
  withChecker((problem) => {
    const more = withGraph(({ inputs }) => ({ inputs: [...inputs, f32("other", 50)] }));
    assert.match(problem(more), /has 4 inputs, not 3/);
    assert.match(problem(first("embedding", () => ({ inputs: ["positions"] }))), /reads positions/);
    // The head's input has only the rows asked for; a rope of it would turn by other tokens' positions.
    const rotated = withNodes((nodes) => {
      const narrow = nodes.at(-1)?.inputs[0] ?? "";
      const norm = nodes.find((node) => node.outputs.some((v) => v.name === narrow));
      const row = norm?.outputs.find((v) => v.type.dtype === "f32" && v.type.shape[0] === "R");
      assert.ok(row);
      const rope: NodeOf<"rope"> = {
        op: "rope",
        inputs: [row.name, "positions"],
        outputs: [{ name: "turned", type: row.type }],
        params: { table: "rope_0", headDim: 10 },
        placement: { device: "cpu", lane: "backbone", causes: [] },
      };
      return beforeLast(nodes, rope);
    });
    const tables = (change: (table: RopeTable) => Partial<RopeTable>) =>
      withGraph(({ ropes }) => ({ ropes: ropes.map((table) => ({ ...table, ...change(table) })) }));
    const tenWide = (plan: Plan) => tables(() => ({ frequencies: [1, 1, 1, 1, 1] }))(rotated(plan));
    assert.match(problem(tenWide), /rope_0|expected every token/);
    const own: Edit = (plan) => {
      const { graph } = rotated(plan);
      const table = { name: "rope_1", frequencies: [1, 1, 1, 1, 1], scale: 1 };
      const nodes = graph.nodes.map((node) =>
        node.op === "rope" ? { ...node, params: { ...node.params, table: "rope_1" } } : node
      );
      return withGraph(() => ({ nodes, ropes: [...graph.ropes, table] }))(plan);
    };
    assert.match(problem(own), /turned = rope\(\.\.\.\): reads .*, \[R,50\] f32: expected every token/);
    assert.match(problem(tables((t) => ({ frequencies: [...t.frequencies, 1] }))), /expects 6 frequencies/);
    assert.match(problem(tables((t) => ({ frequencies: t.frequencies.slice(1) }))), /expects 6 frequencies/);
    assert.match(problem(tables(() => ({ frequencies: [] }))), /has no frequencies/);
    assert.match(problem(tables(() => ({ scale: NaN }))), /scale of rope_0/);
    const moreTables = (count: number, length: number) =>
      withGraph(({ ropes }) => ({
        ropes: [
          ...ropes,
          ...Array.from({ length: count }, (_, i) => ({
            name: `more_${i}`,
            frequencies: Array<number>(length).fill(1),
            scale: 1,
          })),
        ],
      }));
    for (const edit of [moreTables(1, 1019), moreTables(1019, 1)]) {
      assert.match(problem(edit), /tables have 1025 frequencies, at most 1024/);
    }
  }));
Deno.test("a weight or a norm is used at one width", () =>
  withChecker((problem) => {
    // The tied head once more, on the wider activations inside the last MLP.
    const wide = withNodes((nodes) => {
      const head = find(nodes.toReversed(), "linear");
      const inner = find(nodes, "silu_mul").outputs;
      return beforeLast(nodes, {
        ...head,
        inputs: [inner.at(-1)!.name],
        outputs: [f32("logits_again", 41)],
      });
    });
    assert.match(problem(wide), /model\.embed_tokens is used at the widths 50 and 90/);
    const norm = (changed: Partial<Params["rms_norm"]>): Edit =>
      withNodes((nodes) => {
        const inner = find(nodes, "silu_mul").outputs[0]!;
        const { codes: _, ...rest } = find(nodes, "rms_norm").params;
        const node: Node = {
          ...find(nodes, "rms_norm"),
          inputs: [inner.name],
          outputs: [f32("again", 90)],
          params: { ...rest, ...changed },
        };
        return beforeLast(nodes, node);
      });
    assert.match(problem(norm({})), /input_layernorm\.weight is used at the widths 50 and 90/);
    assert.match(problem(norm({ headDim: 45 })), /input_layernorm\.weight is used at the widths 50 and 45/);
    assert.match(problem(norm({ headDim: 40 })), /cannot split 90 columns/);
    const heads = norm({ path: "model.layers.0.self_attn.q_norm", headDim: 30 });
    assert.match(problem(heads), /q_norm\.weight is used at the widths 12 and 30/);
    const qNorm = { path: "model.layers.0.input_layernorm", epsilon: 1e-5 };
    assert.match(
      problem(params("append", { qNorm })),
      /input_layernorm\.weight is used at the widths 50 and 12/,
    );
    // One that nothing else uses is as long as the heads that it is for.
    const longer = { path: "model.norm", epsilon: 1e-5 };
    assert.match(problem(params("append", { kNorm: longer })), /model\.norm\.weight is used at the widths/);
    const other = params("append", { qNorm: { path: "model.other", epsilon: 1e-5 } });
    assert.match(problem(other), /its vectors are not those of its graph/);
    const listed: Edit = (plan) => {
      const { ["model.layers.0.self_attn.q_norm.weight"]: _, ...vectors } = plan.vectors;
      return other({ ...plan, vectors: { ...vectors, "model.other.weight": 12 } });
    };
    assert.match(problem(listed), /tensor model\.other\.weight, F32 \[12\], is missing/);
    for (const epsilon of [NaN, 0, -1]) {
      assert.match(problem(params("append", { qNorm: { ...qNorm, epsilon } })), /epsilon must be/);
    }
  }));

Deno.test("attention reads the cache that its queries' layer appends to", () =>
  withChecker((problem) => {
    for (const changed of [{ layer: 1 }, { kvHeads: 3 }, { headDim: 6 }, { headDim: 4, kvHeads: 3 }]) {
      assert.match(problem(params("attend", changed)), /reads another cache/);
    }
    assert.match(problem(params("append", { layer: 1 })), /reads another cache/);
    assert.match(problem(params("append", { headDim: 6 })), /expects 3 frequencies/);
    for (const layer of [-1, 0.5, 2 ** 31, 2 ** 53]) {
      assert.match(problem(params("append", { layer })), /layer must be 0 to/);
    }
    const again = withNodes((nodes) =>
      beforeLast(nodes, { ...find(nodes, "append"), outputs: [f32("q_again", 36)] })
    );
    assert.match(problem(again), /layer 0 has a second attention/);
    const swapped = first("append", ({ inputs: [q, k, ...rest] }) => ({ inputs: [k, q, ...rest] }));
    assert.match(problem(swapped), /is not sound/);
  }));

Deno.test("logits are a matrix of their own, as wide as the vocabulary", () =>
  withChecker((problem) => {
    const several = withNodes((nodes) => {
      const head = find(nodes.toReversed(), "linear");
      const second = { ...head.params.weights[0]!, path: "model.other" };
      const outputs = [...head.outputs, { ...head.outputs[0]!, name: "more" }];
      const weights = [...head.params.weights, second];
      return nodes.map((n) => n === head ? { ...head, outputs, params: { ...head.params, weights } } : n);
    });
    assert.match(problem(several), /makes the logits, logits, and other values beside them/);
    const output = (name: string) => withGraph(() => ({ outputs: [name] }));
    assert.match(problem(output("x")), /expected logits of the rows asked for/);
    assert.match(problem(output("rows")), /expected logits of the rows asked for/);
    const narrow: Edit = (plan) =>
      output(find(plan.graph.nodes.toReversed(), "add_rms_norm").outputs[0]!.name)(plan);
    assert.match(problem(narrow), /vocabulary is 41 in the model and 50 in the graph/);
    const codes: Edit = (plan) =>
      output(find(plan.graph.nodes.toReversed(), "add_rms_norm").outputs[2]!.name)(plan);
    assert.match(problem(codes), /expected logits of the rows asked for, \[R,n\] f32/);
    assert.match(problem(withGraph(() => ({ outputs: [] }))), /no outputs/);
  }));

Deno.test("what a plan says of the model beside its vocabulary and context is shown, and trusted by no kernel", () =>
  withChecker((problem) => {
    const model = { layers: 99, heads: 7, kvHeads: 5, headDim: 3, hiddenSize: 1, parameters: 1 };
    assert.equal(problem((plan) => ({ ...plan, model: { ...plan.model, ...model } })), "");
    assert.match(
      problem((plan) => ({ ...plan, model: { ...plan.model, vocabularySize: 42 } })),
      /vocabulary is 42 in the model and 41 in the graph/,
    );
  }));
