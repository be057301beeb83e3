import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  COMPILE_DEFAULTS,
  compileModel,
  createCpuExecutor,
  genericProfile,
  openBundle,
  Session,
} from "./mod.ts";

Deno.test("the library's example", async () => {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-mod-"));
  try {
    const model = fileURLToPath(new URL("examples/models/tiny-dense", import.meta.url));
    const output = join(folder, "tiny");
    await compileModel({ ...COMPILE_DEFAULTS, model, output, threads: 2, profile: genericProfile(2) });
    using bundle = openBundle(output);
    using executor = createCpuExecutor(bundle, { threads: 2, corrections: "auto" });
    using session = new Session(executor);
    const logits = await session.prefill(Int32Array.of(1, 2, 3));
    assert.equal(logits.length, bundle.plan.model.vocabularySize);
    // They are the last token's: the same ones come without a session.
    using sequence = executor.sequence();
    const runs = [{
      sequence,
      position: 0,
      tokens: Int32Array.of(1, 2, 3),
      as: "prefill",
      logits: "all",
    }] as const;
    const expected = logits.slice();
    const [all] = executor.step({ runs });
    assert.deepEqual(all?.slice(-logits.length), expected);
    assert.ok(expected.every(Number.isFinite) && new Set(expected).size > logits.length / 2);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
