import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../errors.ts";
import { arbitraryGraph, TINY, transformer } from "../ir/fixture.ts";
import { fuse } from "../passes/fuse.ts";
import { tensorOf, type WeightSource } from "../weights/source.ts";
import { randomSource } from "../../tests/fixtures/random_source.ts";
import { FloatWeights } from "./ops.ts";
import { calibrationPass, type PassOptions, runChunk } from "./pass.ts";
import { layerSegments } from "./segments.ts";

const ids = (count: number, vocabulary: number) =>
  Int32Array.from({ length: count }, (_, t) => (t * 37 + 5) % vocabulary);

/** Inputs of all windows, chunks behind each other. */
async function observed(options: Omit<PassOptions, "observe">): Promise<Map<string, number[]>> {
  const all = new Map<string, number[]>();
  await calibrationPass({
    ...options,
    observe: (window, x, tokens, inputs) => {
      assert.equal(x.length, tokens * inputs);
      all.set(window, [...all.get(window) ?? [], ...x]);
    },
  });
  return all;
}

const tiny = fuse(transformer());

Deno.test("a transformer falls into its layers; what no window depends on is left out", () => {
  const segments = layerSegments(fuse(transformer({ ...TINY, layers: 3 })));
  assert.deepEqual(
    segments.map((s) => s.windows),
    [0, 1, 2].map((layer) => ["qkv", "o", "gate_up", "down"].map((name) => `${layer}.${name}`)),
  );
  assert.deepEqual(segments.map((s) => s.input), [undefined, segments[0]!.output, segments[1]!.output]);
  assert.equal(segments[0]!.nodes[0]!.op, "embedding");
  assert.equal(segments[2]!.output, undefined);
  const last = segments[2]!.nodes.at(-1)!;
  assert.ok(last.op === "linear" && last.params.window === "2.down");
});

Deno.test("any graph: layer by layer and chunk by chunk, windows see the bits of one run of each text", async () => {
  await fc.assert(
    fc.asyncProperty(
      arbitraryGraph.map(fuse),
      fc.integer({ min: 1, max: 30 }),
      fc.integer({ min: 1, max: 12 }),
      async (graph, count, window) => {
        const source = randomSource(graph);
        const tokens = ids(count, 50);
        let found: Map<string, number[]>;
        try {
          found = await observed({ graph, source, text: { tokens, window }, threads: 2 });
        } catch (error) {
          // Products of products leave the range of f32.
          assert.ok(error instanceof HcinferError && error.kind === "checkpoint");
          return;
        }
        const expected = new Map<string, number[]>();
        for (let start = 0; start < count; start += window) {
          const text = { tokens: tokens.subarray(start, start + window), window: 99 };
          const { values } = runChunk(graph, new FloatWeights(source), text, 1);
          for (const node of graph.nodes) {
            if (node.op !== "linear" || node.params.window === undefined) continue;
            const before = expected.get(node.params.window) ?? [];
            expected.set(node.params.window, [...before, ...values.get(node.inputs[0]!)!]);
          }
        }
        assert.deepEqual(found, expected);
      },
    ),
    { numRuns: 60 },
  );
});

Deno.test("texts longer than a chunk, and many short ones in several chunks, whose last is ragged", async () => {
  const source = randomSource(tiny);
  const tokens = ids(4096 + 50, 128);
  for (const window of [3, 6000]) {
    const found = await observed({ graph: tiny, source, text: { tokens, window }, threads: 2 });
    assert.deepEqual([...found.values()].map((x) => x.length / tokens.length), [
      64,
      64,
      64,
      160,
      64,
      64,
      64,
      160,
    ]);
    const at = 3 * 1365;
    const text = { tokens: tokens.subarray(window === 3 ? at : 0, at + 2), window };
    const { values } = runChunk(tiny, new FloatWeights(source), text, 1);
    const node = tiny.nodes.find((node) => node.op === "linear" && node.params.window === "1.down")!;
    const last = values.get(node.inputs[0]!)!.subarray(-160);
    assert.deepEqual(found.get("1.down")!.slice((at + 1) * 160, (at + 2) * 160), [...last]);
  }
});

Deno.test("layers end in order, progress reaches its end, and an abort stops between chunks", async () => {
  const source = randomSource(tiny);
  const events: string[] = [];
  const options: PassOptions = {
    graph: tiny,
    source,
    text: { tokens: ids(20, 128), window: 8 },
    threads: 1,
    observe: (window) => events.push(window),
    layerDone: async (windows) => {
      await Promise.resolve();
      events.push(`done ${windows.length}`);
    },
    onProgress: (done, total, what) => events.push(`${done}/${total} ${what}`),
  };
  await calibrationPass(options);
  const layer = (n: number) => ["qkv", "o", "gate_up", "down"].map((name) => `${n}.${name}`);
  assert.deepEqual(events, ["0/2 0.qkv", ...layer(0), "done 4", "1/2 1.qkv", ...layer(1), "done 4", "2/2 "]);
  events.length = 0;
  const controller = new AbortController();
  const stop = new Error("stop");
  const aborting = calibrationPass({
    ...options,
    signal: controller.signal,
    layerDone: () => controller.abort(stop),
  });
  await assert.rejects(aborting, stop);
  assert.ok(!events.includes("1.qkv"));
});

Deno.test("what cannot be computed is refused by name", async () => {
  const source = randomSource(tiny);
  const run = (options: Partial<PassOptions>) =>
    calibrationPass({
      graph: tiny,
      source,
      text: { tokens: ids(20, 128), window: 8 },
      threads: 1,
      observe() {},
      ...options,
    });
  await assert.rejects(run({ text: { tokens: new Int32Array(0), window: 8 } }), { kind: "input" });
  await assert.rejects(run({ text: { tokens: ids(4, 128), window: 0 } }), { kind: "input" });
  await assert.rejects(run({ text: { tokens: Int32Array.of(1, 128), window: 8 } }), { kind: "input" });
  const broken: WeightSource = {
    ...source,
    vector: (ref) => source.vector(ref).fill(ref.tensor.includes("1.post_attention") ? NaN : 1),
  };
  await assert.rejects(run({ source: broken }), {
    kind: "checkpoint",
    message: /1\.gate_up .* token 0 of .* text 0/,
  });
  const embeds = source.matrix({
    path: "model.embed_tokens",
    tensor: "model.embed_tokens.weight",
    outputs: 128,
  });
  const damaged = tensorOf(new Float32Array(embeds.bytes.slice().buffer).fill(Infinity, 11 * 64, 12 * 64), [
    128,
    64,
  ]);
  const infinite: WeightSource = {
    ...source,
    matrix: (ref) => ref.path === "model.embed_tokens" ? damaged : source.matrix(ref),
  };
  // Of the ids, the 15th is 14 * 37 + 5 = 11 modulo 128.
  await assert.rejects(run({ source: infinite }), {
    kind: "checkpoint",
    message: /token 6 of calibration text 1/,
  });
});
