import assert from "node:assert/strict";
import { HcinferError } from "../errors.ts";
import { GraphBuilder } from "../ir/build.ts";
import { moduleTensor } from "../ir/naming.ts";
import { tensor } from "../ir/types.ts";
import type { Checkpoint, StoredTensor } from "./checkpoint.ts";
import { parseConfig } from "./config.ts";
import { inventory } from "./inventory.ts";
import { packAll } from "./pack.ts";
import { roundToNearest } from "./quantizer.ts";
import { dequantize } from "./reference.ts";
import { checkpointSource, tensorOf, valuesOf, type WeightSource } from "./source.ts";

/** A checkpoint that is no folder: everything comes from memory, under names of its own. */
function inMemory(tensors: Readonly<Record<string, StoredTensor>>): Checkpoint {
  const config = {
    model_type: "llama",
    hidden_size: 8,
    intermediate_size: 16,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    vocab_size: 10,
    max_position_embeddings: 32,
    rms_norm_eps: 1e-5,
    hidden_act: "silu",
  };
  return {
    path: "memory",
    name: "memory",
    config: parseConfig(JSON.stringify(config), "memory"),
    ends: { bosToken: null, stopTokens: [] },
    tensorNames: Object.keys(tensors),
    tensor: (name) => tensors[name],
    tokenizer: [{ name: "tokenizer.json", read: () => new TextEncoder().encode("{}") }],
    weightFiles: [],
    files: [],
    [Symbol.dispose]() {},
  };
}

Deno.test("a checkpoint's source reads the tensors that references name, exactly, in every type", () => {
  const source = checkpointSource(inMemory({
    "blk.0.norm": { dtype: "F16", shape: [2], bytes: Uint8Array.of(0x00, 0x3c, 0x00, 0xc0) },
    "blk.0.codes": { dtype: "Q4_K", shape: [2], bytes: new Uint8Array(2) },
    "blk.0.up": { dtype: "BF16", shape: [1, 2], bytes: Uint8Array.of(0x80, 0x3f, 0x00, 0xc0) },
  }));
  const norm = { path: "model.norm", tensor: "blk.0.norm" };
  assert.deepEqual(source.vector(norm), Float32Array.of(1, -2));
  const up = source.matrix({ path: "up_proj", tensor: "blk.0.up", outputs: 1 });
  assert.deepEqual([up.dtype, up.shape, valuesOf(up)], ["BF16", [1, 2], Float32Array.of(1, -2)]);
  const refused = (name: string, message: RegExp) =>
    assert.throws(
      () => source.vector({ path: "x", tensor: name }),
      (e) => e instanceof HcinferError && e.kind === "checkpoint" && message.test(e.message),
    );
  refused("blk.0.codes", /memory: the weight blk\.0\.codes must be BF16, F16, F32, found Q4_K/);
  refused("blk.1.up", /blk\.1\.up .*found no such tensor/);
});

Deno.test("packing reads weights through the source alone, and names what is not finite", () => {
  const [rows, inputs] = [10, 8];
  const b = new GraphBuilder("test");
  const tokens = b.input("tokens", tensor("i32", "T"));
  const format = { kind: "bf16" } as const;
  const x = b.node("embedding", [tokens], { ...moduleTensor("embed"), rows, width: inputs, format });
  const y = b.node("rms_norm", x, { ...moduleTensor("norm"), epsilon: 1e-5 });
  const needs = inventory(b.finish(y, "quantized"));
  const pack = (source: WeightSource) => {
    const written = new Map<string, Uint8Array>();
    const sink = {
      write: (name: string, ...parts: readonly Uint8Array[]) => void written.set(name, parts[0]!.slice()),
      read: (name: string) => written.get(name)!,
    };
    const forms = { residual: null, factors: null };
    packAll(needs, sink, { source, quantizer: roundToNearest(1), forms, threads: 1 });
    return written;
  };
  const values = Float32Array.from({ length: rows * inputs }, (_, i) => i - 40);
  const source: WeightSource = {
    origin: "nowhere",
    matrix: ({ outputs }) => tensorOf(values, [outputs, inputs]),
    vector: () => Float32Array.from({ length: inputs }, (_, j) => j),
  };
  const written = pack(source);
  assert.deepEqual([...written.keys()], ["norm.weight", "embed.packed"]);
  const packed = dequantize(written.get("embed.packed")!, format, rows, inputs);
  assert.deepEqual(Float32Array.from(packed.subarray(0, rows * inputs)), values);
  const refused = (broken: Partial<WeightSource>, name: string) =>
    assert.throws(
      () => pack({ ...source, ...broken }),
      (e) =>
        e instanceof HcinferError && e.message.includes(`the tensor ${name} of nowhere cannot be compiled`),
    );
  assert.throws(
    () => pack({ ...source, matrix: () => tensorOf(values, [inputs, rows]) }),
    /nowhere gives embed\.weight as \[8,10\], the graph has \[10,8\]/,
  );
  refused({ vector: () => new Float32Array(inputs).fill(NaN) }, "norm.weight");
  refused({ matrix: () => tensorOf(values.map(() => Infinity), [rows, inputs]) }, "embed.weight");
});
