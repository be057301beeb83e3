import assert from "node:assert/strict";
import { occupancy } from "./occupancy.ts";

/** Values of the tables in NVIDIA's occupancy calculator (CUDA_Occupancy_Calculator.xls; cuda_occupancy.h). */
Deno.test("blocks and warps of a multiprocessor", () => {
  const cases = [
    // capability, threads, registers, shared; blocks, warps, limited by
    [75, 256, 32, 0, 4, 32, "warps"],
    [75, 256, 128, 0, 2, 16, "registers"],
    [75, 128, 64, 32768, 2, 8, "shared"],
    [75, 32, 16, 0, 16, 16, "blocks"],
    [80, 256, 32, 0, 8, 64, "warps"],
    [80, 256, 40, 0, 6, 48, "registers"],
    [80, 1024, 64, 0, 1, 32, "registers"],
    [80, 128, 255, 0, 2, 8, "registers"],
    [80, 128, 32, 48 * 1024, 3, 12, "shared"],
    [80, 32, 32, 0, 32, 32, "blocks"],
    [86, 256, 40, 0, 6, 48, "warps"],
    [86, 256, 64, 0, 4, 32, "registers"],
    [86, 128, 32, 48 * 1024, 2, 8, "shared"],
    [86, 64, 32, 0, 16, 32, "blocks"],
    [89, 64, 32, 0, 24, 48, "warps"],
    [90, 256, 32, 48 * 1024, 4, 32, "shared"],
    [90, 384, 168, 0, 1, 12, "registers"],
  ] as const;
  for (const [capability, threads, registers, shared, blocks, warps, limitedBy] of cases) {
    const found = occupancy({ capability, threads, registers, shared });
    assert.deepEqual(
      [found.blocks, found.warps, found.limitedBy],
      [blocks, warps, limitedBy],
      `${capability}: ${threads} threads, ${registers} registers, ${shared} bytes`,
    );
  }
  assert.equal(occupancy({ capability: 80, threads: 256, registers: 64, shared: 0 }).share, 0.5);
});

Deno.test("a block that no multiprocessor holds, and an unknown capability", () => {
  assert.equal(occupancy({ capability: 75, threads: 1024, registers: 80, shared: 0 }).blocks, 0);
  assert.throws(() => occupancy({ capability: 70, threads: 32, registers: 32, shared: 0 }), RangeError);
});
