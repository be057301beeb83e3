import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { hasCompiler } from "../../ffi/build_library.ts";
import { promisify } from "node:util";
import process from "node:process";

/** The C++ tests of the kernels, on every instruction set of this machine, of the objects of the last build. */
Deno.test({
  name: "native kernels agree with plain loops, and with each other bit for bit",
  ignore: !(await hasCompiler()),
  fn: async () => {
    const env = { ...process.env, OBJECTS: fileURLToPath(new URL("../../ffi/build", import.meta.url)) };
    const { stdout } = await promisify(execFile)(fileURLToPath(new URL("run.sh", import.meta.url)), [], {
      env,
    });
    const digests = new Map<string, Set<string>>();
    for (const line of stdout.trim().split("\n")) {
      const [test, , digest] = line.split(" ");
      digests.set(test!, (digests.get(test!) ?? new Set()).add(digest!));
    }
    const tests = [
      "simd_test",
      "kernels_test",
      "attention_test",
      "linear_test",
      "correction_test",
      "extents_test",
      "shedding_test",
      "engine_test",
    ];
    assert.deepEqual(
      [...digests].map(([test, values]) => [test, values.size]),
      tests.map((test) => [test, 1]),
    );
  },
});
