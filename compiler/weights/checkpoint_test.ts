import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HcinferError } from "../errors.ts";
import { GraphBuilder } from "../ir/build.ts";
import type { Graph } from "../ir/graph.ts";
import { moduleTensor } from "../ir/naming.ts";
import { tensor } from "../ir/types.ts";
import { checkModel } from "./check_model.ts";
import { openCheckpoint } from "./checkpoint.ts";
import { withoutText } from "./huggingface.ts";
import { layoutSafetensors, type TensorSpec } from "./safetensors.ts";

const CONFIG = {
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

/** Embedding, norm and a head: enough of a model for its tensors to be right or wrong. */
function graph(): Graph {
  const builder = new GraphBuilder("llama");
  const tokens = builder.input("tokens", tensor("i32", "T"));
  const [x] = builder.node("embedding", [tokens], {
    ...moduleTensor("model.embed_tokens"),
    rows: 10,
    width: 8,
  });
  assert.ok(x);
  const [h] = builder.node("rms_norm", [x], { ...moduleTensor("model.norm"), epsilon: 1e-5 });
  assert.ok(h);
  const logits = builder.node("linear", [h], { weights: [{ ...moduleTensor("lm_head"), outputs: 10 }] });
  return builder.finish(logits, "traced");
}

const TENSORS: readonly TensorSpec[] = [
  { name: "model.embed_tokens.weight", dtype: "BF16", shape: [10, 8] },
  { name: "model.norm.weight", dtype: "F32", shape: [8] },
  { name: "lm_head.weight", dtype: "F16", shape: [10, 8] },
];

function weights(specs: readonly TensorSpec[]): Uint8Array {
  const { header, fileBytes } = layoutSafetensors(specs, {}, 1);
  const bytes = new Uint8Array(fileBytes);
  bytes.set(header);
  return bytes;
}

/** Runs `work` with a folder that holds these files. */
function withFolder(
  files: Record<string, Uint8Array | object | string>,
  work: (folder: string) => void,
): void {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-checkpoint-"));
  try {
    for (const [name, content] of Object.entries(files)) {
      const raw = typeof content === "string" || content instanceof Uint8Array;
      writeFileSync(join(folder, name), raw ? content : JSON.stringify(content));
    }
    work(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function refused(work: () => void, ...patterns: RegExp[]): void {
  assert.throws(work, (error) => {
    assert.ok(error instanceof HcinferError && error.kind === "checkpoint", String(error));
    for (const pattern of patterns) assert.match(error.message, pattern);
    return true;
  });
}

Deno.test("a folder with one file of tensors", () => {
  const files = { "config.json": CONFIG, "model.safetensors": weights(TENSORS), "tokenizer.json": {} };
  withFolder(files, (folder) => {
    using checkpoint = openCheckpoint(folder);
    assert.deepEqual(checkpoint.tensorNames, TENSORS.map((t) => t.name));
    assert.equal(checkpoint.tensor("lm_head.weight")?.dtype, "F16");
    assert.equal(checkpoint.tensor("lm_head.bias"), undefined);
    assert.deepEqual(checkpoint.tokenizer.map((f) => [f.name, f.read().length]), [["tokenizer.json", 2]]);
    checkModel(graph(), checkpoint);
  });
});

Deno.test("a folder with several files and an index; links as in the Hugging Face cache", () => {
  const [a, b, c] = TENSORS as [TensorSpec, TensorSpec, TensorSpec];
  const files = {
    "config.json": CONFIG,
    "blob": weights([a, b]),
    "model-2.safetensors": weights([c]),
    "model.safetensors.index.json": {
      weight_map: {
        [a.name]: "model-1.safetensors",
        [b.name]: "model-1.safetensors",
        [c.name]: "model-2.safetensors",
      },
    },
  };
  withFolder(files, (folder) => {
    symlinkSync("blob", join(folder, "model-1.safetensors"));
    using checkpoint = openCheckpoint(folder);
    checkModel(graph(), checkpoint);
    assert.deepEqual(checkpoint.weightFiles.length, 2);
  });
  const index = (file: string, name = c.name) => ({ weight_map: { [name]: file } });
  for (
    const [map, pattern] of [
      [index("../model.safetensors"), /no file beside it/],
      [index("/etc/passwd"), /no file beside it/],
      [index("model-3.safetensors"), /model-3\.safetensors/],
      [index("model-2.safetensors", "other.weight"), /lacks the tensor other\.weight/],
      [{ weight_map: [1] }, /index\.json does not fit/],
    ] as const
  ) {
    withFolder({ ...files, "model.safetensors.index.json": map }, (folder) => {
      refused(() => openCheckpoint(folder), pattern);
    });
  }
});

Deno.test("tensors that are not the model's: one list of all that is wrong", () => {
  const changed: TensorSpec[] = [
    { name: "model.embed_tokens.weight", dtype: "BF16", shape: [10, 9] },
    { name: "model.norm.weight", dtype: "I32", shape: [8] },
    { name: "model.norm.bias", dtype: "BF16", shape: [8] },
  ];
  withFolder({ "config.json": CONFIG, "model.safetensors": weights(changed) }, (folder) => {
    using checkpoint = openCheckpoint(folder);
    refused(
      () => checkModel(graph(), checkpoint),
      /graphs\/llama\.py/,
      /missing \(1\):\n {4}lm_head\.weight \[10,8\]/,
      /wrong shape \(2\):\n {4}model\.embed_tokens\.weight: found \[10,9\], expected \[10,8\]/,
      /model\.norm\.weight: found I32, expected BF16, F16, F32/,
      /unexpected \(1\):\n {4}model\.norm\.bias/,
      /tie_word_embeddings/,
    );
  });
});

Deno.test("a copy of a tied head is tolerated", () => {
  const builder = new GraphBuilder("llama");
  const tokens = builder.input("tokens", tensor("i32", "T"));
  const embedded = builder.node("embedding", [tokens], {
    ...moduleTensor("model.embed_tokens"),
    rows: 10,
    width: 8,
  });
  const [h] = builder.node("rms_norm", embedded, { ...moduleTensor("model.norm"), epsilon: 1e-5 });
  assert.ok(h);
  const tied = { weights: [{ ...moduleTensor("model.embed_tokens"), outputs: 10 }] };
  const tiedGraph = builder.finish(builder.node("linear", [h], tied), "traced");
  const files = {
    "config.json": { ...CONFIG, tie_word_embeddings: true },
    "model.safetensors": weights(TENSORS),
  };
  withFolder(files, (folder) => {
    using checkpoint = openCheckpoint(folder);
    checkModel(tiedGraph, checkpoint);
  });
  withFolder({ ...files, "config.json": CONFIG }, (folder) => {
    using checkpoint = openCheckpoint(folder);
    refused(() => checkModel(tiedGraph, checkpoint), /unexpected \(1\):\n {4}lm_head\.weight/);
  });
});

Deno.test("what is no model says what one is", () => {
  withFolder({ "model.gguf": "GGUF", "pytorch_model.bin": "x", "config.json": CONFIG }, (folder) => {
    refused(
      () => openCheckpoint(folder),
      /no model\.safetensors \(found model\.gguf, pytorch_model\.bin, which is not read: get its safetensors files\)/,
      /expected a Hugging Face folder: config\.json/,
    );
    refused(
      () => openCheckpoint(join(folder, "model.gguf")),
      /is a GGUF file/,
      /A model is a Hugging Face folder/,
    );
    const inside = join(folder, "config.json");
    refused(
      () => openCheckpoint(inside),
      /is a file, not a folder: give the folder that holds it, .*hcinfer-ch/,
    );
    refused(() => openCheckpoint(join(folder, "nothing")), /does not exist/);
    refused(() => openCheckpoint("someone/some-model-1.5B"), /hf download someone\/some-model-1\.5B/);
  });
  withFolder({ "model.safetensors": weights(TENSORS) }, (folder) => {
    refused(() => openCheckpoint(folder), /has model\.safetensors but no config\.json: copy the one/);
    refused(() => openCheckpoint(join(folder, "model.safetensors")), /is a file, not a folder\.\n/);
  });
  withFolder({ "some-q4_0.gguf": "GGUF", "README.md": "" }, (folder) => {
    refused(
      () => openCheckpoint(folder),
      /no config\.json, but some-q4_0\.gguf, a GGUF file, .*: give the Hugging/,
    );
  });
  withFolder({ "config.json": "{", "model.safetensors": weights(TENSORS) }, (folder) => {
    refused(() => openCheckpoint(folder), /config\.json is not JSON/);
  });
  withFolder({ "config.json": CONFIG, "model.safetensors": weights(TENSORS).slice(0, -1) }, (folder) => {
    refused(() => openCheckpoint(folder), /model\.safetensors is not a sound safetensors file/, /cut off/);
  });
  withFolder({ "config.json": CONFIG, "model.safetensors": "" }, (folder) => {
    refused(() => openCheckpoint(folder), /0 bytes/);
  });
});

Deno.test("the architecture is judged before weights are asked for", () => {
  withFolder({ "config.json": { ...CONFIG, model_type: "mamba" } }, (folder) => {
    assert.throws(
      () => openCheckpoint(folder),
      (error) =>
        error instanceof HcinferError && error.kind === "model-description" && /"mamba"/.test(error.message),
    );
  });
});

Deno.test("a Git LFS pointer in the place of any file says what to run", () => {
  const pointer = `version https://git-lfs.github.com/spec/v1\noid sha256:${
    "0".repeat(64)
  }\nsize 269060552\n`;
  const index = { weight_map: { "a.weight": "model-1.safetensors" } };
  const sound = { "config.json": CONFIG, "model.safetensors": weights(TENSORS), "tokenizer.json": {} };
  const cases: [string, Record<string, Uint8Array | object | string>][] = [
    ["model.safetensors", sound],
    ["config.json", sound],
    ["tokenizer.json", sound],
    ["model.safetensors.index.json", sound],
    ["model-1.safetensors", { "config.json": CONFIG, "model.safetensors.index.json": index }],
  ];
  for (const [name, files] of cases) {
    withFolder({ ...files, [name]: pointer }, (folder) => {
      refused(
        () => openCheckpoint(folder),
        new RegExp(
          `${name} is a Git LFS pointer of \\d+ bytes, .*Run "git lfs pull" in .*hcinfer-checkpoint`,
        ),
      );
    });
  }
});

Deno.test("a folder without tokenizer.json is said to have no text", () => {
  withFolder({ "config.json": CONFIG, "tokenizer.json": {} }, (folder) => {
    assert.equal(withoutText(folder), undefined);
    rmSync(join(folder, "tokenizer.json"));
    assert.match(
      withoutText(folder)!,
      /has no tokenizer\.json: the bundle will .*Copy the model's tokenizer\.json/,
    );
    writeFileSync(join(folder, "tokenizer.model"), "");
    assert.match(withoutText(folder)!, /\(its tokenizer\.model is of another kind/);
    assert.equal(withoutText(join(folder, "nothing")), undefined);
  });
});

Deno.test("pipes in the place of a checkpoint's files are refused, and nothing waits", () => {
  const files = { "config.json": CONFIG, "model.safetensors": weights(TENSORS) };
  for (const name of Object.keys(files)) {
    withFolder(files, (folder) => {
      rmSync(join(folder, name));
      execFileSync("mkfifo", [join(folder, name)]);
      refused(() => openCheckpoint(folder), /it is a pipe or a device/);
    });
  }
  withFolder({ ...files, "config.json": "[".repeat(2 ** 20) }, (folder) => {
    refused(() => openCheckpoint(folder), /config\.json .* nested more than 64 deep/);
  });
  withFolder({ ...files, "config.json": " ".repeat(2 ** 21) }, (folder) => {
    refused(() => openCheckpoint(folder), /has 2097152 bytes; at most 1048576 are read/);
  });
});
