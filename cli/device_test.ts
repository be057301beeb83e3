/** `--device` and `--gpu-memory` at the command line. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { gpuProblem } from "../runtime/gpu_problem.ts";
import { assertFailed, hcinfer } from "../tests/command_line.ts";
import { withLetterBundle as withBundle } from "../tests/fixtures/letter_model.ts";

/** Commands that run a bundle, with the least of their arguments. */
function running(bundle: string, folder: string): string[][] {
  const text = join(folder, "text.txt");
  writeFileSync(text, "a text");
  return [
    ["run", bundle, "a"],
    ["eval", bundle, "--text", text],
    ["logits", bundle, "--tokens", "1,2", "-o", join(folder, "logits.safetensors")],
    ["bench", bundle, "--prompt", "4", "--tokens", "2", "--repeats", "1"],
  ];
}

Deno.test("--device cuda where there is no GPU says why, and what to do", {
  ignore: gpuProblem() === undefined,
}, () =>
  withBundle(async (bundle, folder) => {
    for (const command of running(bundle, folder)) {
      const asked = await hcinfer([...command, "--device", "cuda"]);
      assertFailed(asked, 6, /^error: no NVIDIA driver: .*; use --device cpu\n$/);
    }
  }));

Deno.test("options of the device that contradict each other, or that nobody can read", () =>
  withBundle(async (bundle, folder) => {
    for (const command of [...running(bundle, folder), ["compile", bundle, "-o", join(folder, "no")]]) {
      const limited = await hcinfer([...command, "--device", "cpu", "--gpu-memory", "8GiB"]);
      assertFailed(limited, 2, /--device cpu uses no GPU, so --gpu-memory would have no effect/);
    }
    const run = ["run", bundle, "a"];
    assertFailed(await hcinfer([...run, "--device", "gpu"]), 2, /Allowed choices are auto, cpu, cuda/);
    assertFailed(await hcinfer([...run, "--gpu-memory", "8G"]), 2, /--gpu-memory.*like 8GiB, 7.5GB/s);
  }));

Deno.test("--device cpu and auto give the same numbers where the plan has no work for a GPU", () =>
  withBundle(async (bundle, folder) => {
    const logits = join(folder, "logits.safetensors");
    const written: string[] = [];
    for (const device of ["cpu", "auto"]) {
      const outcome = await hcinfer(["logits", bundle, "--tokens", "1,2", "-o", logits, "--device", device]);
      assert.equal(outcome.code, 0, outcome.err);
      assert.match(outcome.err, /^wrote .*\n$/);
      written.push(Deno.readTextFileSync(logits));
    }
    assert.equal(written[0], written[1]);
  }));
