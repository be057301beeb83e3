import assert from "node:assert/strict";
import fc from "fast-check";
import { arbitraryChoices, CHOICES, limits, onDevices, passes } from "../../tests/fixtures/passes.ts";
import { refusal } from "../../tests/fixtures/errors.ts";
import { arbitraryScript, graphOf } from "../../tests/fuzz/graphs.ts";
import { arbitrarySizes, TINY, transformer } from "../ir/fixture.ts";
import { CORRECTION_OPS } from "../ir/ops.ts";
import { verify } from "../ir/verify.ts";
import { memoryOf } from "../memory.ts";
import { PROFILES } from "../profile.ts";
import { usableMemory } from "./devices.ts";
import { fuse } from "./fuse.ts";
import { layout } from "./layout.ts";
import { place } from "./place.ts";
import { quantize } from "./quantize.ts";
import type { Schedule } from "./schedule.ts";

const profile = PROFILES["rtx-4060-laptop"];
const sizes = { ...TINY, layers: 4, hidden: 512, intermediate: 2048, vocabulary: 2048, tied: false };

function total({ graph, corrections }: Schedule): number {
  return memoryOf({ graph, corrections, memory: layout(graph), windows: [] }, limits).device?.total ??
    0;
}

/** Of the backbone: the parts on the CPU, in graph order, by the cause. */
function spilled({ graph }: Schedule): string[] {
  const causes = graph.nodes.filter((node) => !CORRECTION_OPS.has(node.op) && node.placement.device === "cpu")
    .flatMap((node) => node.placement.causes.filter((cause) => cause.startsWith("cpu: ")));
  return [...new Set(causes.map((cause) => cause.replace(/ of 4| (does|do) not fit.*/g, "").slice(5)))];
}

Deno.test("everything is on the GPU that fits; what does not goes from the first layer on, with the embedding", () => {
  const { schedule: all } = passes(transformer(sizes), CHOICES, { profile });
  assert.deepEqual(spilled(all), []);
  assert.ok(all.graph.nodes.every((n) => n.placement.device === (CORRECTION_OPS.has(n.op) ? "cpu" : "gpu")));
  const most = total(all) * 2.5;
  const seen = new Set<number>();
  for (let gpuMemory = most; gpuMemory > 0; gpuMemory -= most / 400) {
    let schedule: Schedule;
    try {
      ({ schedule } = passes(transformer(sizes), CHOICES, { profile, gpuMemory: Math.floor(gpuMemory) }));
    } catch {
      break;
    }
    const found = spilled(schedule);
    const order = [
      found.length > 1 ? "before layers that" : "the embedding",
      "layer 0",
      "layer 1",
      "layer 2",
    ];
    assert.deepEqual(found, order.slice(0, found.length));
    assert.ok(total(schedule) <= gpuMemory, "more is taken than is allowed");
    seen.add(found.length);
  }
  assert.deepEqual([...seen].sort(), [0, 1, 2, 3, 4]);
});

Deno.test("a limit below the smallest plan is refused with what is needed, and that is enough", () => {
  const attempt = (gpuMemory: number) => passes(transformer(sizes), CHOICES, { profile, gpuMemory });
  let needed = "";
  assert.throws(() => attempt(1e6), (error) => {
    needed = /head and one layer, takes ([\d.]+) MiB/.exec((error as Error).message)?.[1] ?? "";
    return refusal("usage", /976 KiB|977 KiB of GPU memory are allowed/)(error);
  });
  const least = Number(needed) * 2 ** 20;
  assert.deepEqual(spilled(attempt(Math.ceil(least * 1.01)).schedule).length, 4);
  assert.throws(() => attempt(Math.floor(least * 0.99)), refusal("usage", /the smallest plan on the GPU/));
  // Nobody asked for the GPU: the CPU, and why.
  const small = { ...profile, gpu: { ...profile.gpu, memory: 320 * 2 ** 20 } };
  assert.ok(usableMemory(small.gpu) > 0);
  const { schedule } = passes(transformer({ ...sizes, vocabulary: 100_000 }), CHOICES, { profile: small });
  assert.equal(total(schedule), 0);
  assert.match(
    spilled(schedule)[0] ?? "",
    /the smallest plan on the GPU, .* and the GPU has 44\.8 MiB to give/,
  );
});

Deno.test("devices that are asked for: the GPU only where there is one, limits only with it, overrides first", () => {
  const quantized = quantize(fuse(transformer(sizes)), CHOICES);
  const cpu = PROFILES["generic-2-core"];
  const refused = (options: Partial<Parameters<typeof place>[1]>, message: RegExp) =>
    assert.throws(() => place(quantized, { profile, limits, ...options }), refusal("usage", message));
  refused({ profile: cpu, device: "gpu" }, /the machine generic-2-core has none/);
  refused({ profile: cpu, gpuMemory: 2 ** 30 }, /the machine generic-2-core has no GPU/);
  refused({ device: "cpu", gpuMemory: 2 ** 30 }, /a GPU memory of 1 GiB is given, and the device cpu/);
  refused({ gpuMemory: 2 ** 34 }, /the GeForce RTX 4060 Laptop has 8 GiB/);
  refused({ gpuMemory: 0 }, /expected more than 0/);
  refused({ device: "cpu", overrides: new Map([["nothing", "gpu"]]) }, /no such node/);
  refused(
    { device: "cpu", overrides: new Map([["model.layers.1", "gpu"]]) },
    /asks for the GPU, which is not used/,
  );
  const onCpu = place(quantized, { profile, limits, device: "cpu" });
  assert.ok(onCpu.nodes.every((node) => node.placement.device === "cpu"));
  const overrides = new Map([["model.layers.1", "cpu"], ["model.layers.1.mlp", "gpu"]] as const);
  const { nodes } = place(quantized, { profile, limits, overrides });
  const device = (name: RegExp) =>
    nodes.flatMap((node) =>
      "weights" in node.params && name.test(node.params.weights[0]!.path) ? [node.placement.device] : []
    );
  assert.deepEqual([device(/1\.self_attn/), device(/1\.mlp/), device(/2\./)].map((d) => [...new Set(d)]), [
    ["cpu"],
    ["gpu"],
    ["gpu"],
  ]);
  // What has no weights follows what is before it in its layer: attention is where q, k and v are.
  assert.deepEqual(nodes.flatMap((n) => n.op === "attention" ? [n.placement.device] : []), [
    "gpu",
    "cpu",
    "gpu",
    "gpu",
  ]);
});

Deno.test("any graph of any choice has a device for every node, on any GPU", () => {
  const models = fc.oneof(arbitrarySizes.map(transformer), arbitraryScript.map((s) => graphOf(s).graph));
  const machines = fc.constantFrom(...["rtx-4060-laptop", "rtx-4090", "h200"] as const);
  fc.assert(
    fc.property(models, arbitraryChoices, machines, (traced, choices, machine) => {
      const { stages, schedule } = passes(traced, choices, { profile: PROFILES[machine] });
      stages.forEach(verify);
      assert.ok(schedule.graph.nodes.some((node) => node.placement.device === "gpu"));
      assert.equal(schedule.corrections.compensationThreads, PROFILES[machine].cpu.cores);
    }),
    { numRuns: 40 },
  );
});

Deno.test("devices may change between any two nodes, codes cross too; corrections and split attention may not", () => {
  const { graph } = passes(transformer(), CHOICES).schedule;
  // Linears alone on the GPU: they read codes of the CPU's norms, and the CPU reads what they make.
  verify(onDevices(graph, (node) => node.op === "linear").graph);
  verify(onDevices(graph, (node) => node.op !== "linear").graph);
  const moved = (op: string) => ({
    ...graph,
    stage: "lowered" as const,
    nodes: graph.nodes.map((node) => {
      const { lane: _, ...placement } = node.placement;
      return { ...node, placement: node.op === op ? { ...placement, device: "gpu" as const } : placement };
    }),
  });
  assert.throws(() => verify(moved("sparse_sum")), /corrections run on the CPU/);
  assert.throws(() => verify(moved("attend")), /runs on the gpu, and the cache of layer 0 is on the cpu/);
});
