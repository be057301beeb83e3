import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { openCheckpoint } from "../../compiler/weights/checkpoint.ts";
import { widen } from "../../compiler/weights/half.ts";
import { temporary } from "../../tests/command_line.ts";
import { quantizeGguf } from "../../ffi/llama_cpp.ts";
import { isLlamaInstalled, llamaLibrary } from "./llama_install.ts";
import { formatsText, quantizeModel, readSummary } from "./llama_weights.ts";

const MODEL = "examples/models/tiny-dense";

Deno.test({
  name:
    "llama.cpp's weights of the bundled model: mixed formats, near the model's own, and all else untouched",
  // The download is the study's and the benchmark's to make.
  ignore: !isLlamaInstalled(),
  async fn() {
    using folder = temporary();
    const output = join(folder.path, "model");
    const summary = await quantizeModel(MODEL, "Q3_K_M", output, 2);
    assert.deepEqual(readSummary(output), summary);
    assert.equal(formatsText(summary), "Q3_K (32), Q4_K (22), Q5_K (2)");
    // The eight layers' weights, in 3.4375, 4.5 and 5.5 bits.
    assert.equal(summary.weights, 8 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 768));
    const bits = 8 * summary.bytes / summary.weights;
    assert.ok(bits > 3.8 && bits < 3.9, `${bits}`);

    using given = openCheckpoint(MODEL), made = openCheckpoint(output);
    assert.deepEqual(made.files.map((file) => basename(file)), given.files.map((file) => basename(file)));
    let matrices = 0;
    for (const name of given.tensorNames) {
      const before = given.tensor(name)!, after = made.tensor(name)!;
      if (after.dtype !== "F32") {
        assert.deepEqual(after, before, name);
        continue;
      }
      matrices++;
      assert.ok(/layers\.\d+\..*proj/.test(name) && before.dtype === "BF16", name);
      const error = relativeError(widen(before.bytes, "BF16"), widen(after.bytes, "F32"));
      assert.ok(error > 0.01 && error < 0.2, `${name}: ${error}`);
    }
    assert.equal(matrices, 56);

    // What it made it replaces.
    assert.deepEqual(Object.keys((await quantizeModel(MODEL, "Q4_0", output, 1)).matrices), ["Q4_0"]);
  },
});

Deno.test({
  name: "what llama.cpp says of a file that it does not read is in the error",
  ignore: !isLlamaInstalled(),
  async fn() {
    using folder = temporary();
    const [input, output] = [join(folder.path, "a.gguf"), join(folder.path, "b.gguf")];
    writeFileSync(input, "GGUF");
    await assert.rejects(quantizeGguf(llamaLibrary(), input, output, 2, 1), {
      kind: "environment",
      message: /^llama\.cpp does not quantise .*a\.gguf: .*fail/,
    });
  },
});

/** ||b - a|| / ||a||. */
function relativeError(a: Float32Array, b: Float32Array): number {
  let error = 0, norm = 0;
  for (let i = 0; i < a.length; i++) {
    error += (b[i]! - a[i]!) ** 2;
    norm += a[i]! ** 2;
  }
  return Math.sqrt(error / norm);
}

Deno.test("a folder that holds something else is not replaced, and other architectures are refused", async () => {
  using folder = temporary();
  await assert.rejects(quantizeModel(MODEL, "Q4_0", folder.path, 1), {
    kind: "usage",
    message: /holds no weights of llama\.cpp/,
  });
  const model = join(folder.path, "model");
  mkdirSync(model);
  const config = readFileSync(join(MODEL, "config.json"), "utf8").replace('"qwen3"', '"mamba"');
  writeFileSync(join(model, "config.json"), config);
  writeFileSync(join(model, "model.safetensors"), readFileSync(join(MODEL, "model.safetensors")));
  await assert.rejects(quantizeModel(model, "Q4_0", join(folder.path, "new"), 1), {
    kind: "model-description",
    message: /no description of the architecture "mamba"/,
  });
});
