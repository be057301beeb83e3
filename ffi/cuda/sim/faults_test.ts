/** Each fault of a kernel is an error, mostly the one that a GPU would answer with; the process goes on. */
import assert from "node:assert/strict";
import process from "node:process";
import { type Argument, environment, SEEDS, Simulator, statusOf } from "./tests/fixture.ts";
import type { DeviceMemory } from "../memory.ts";

process.env["CUDA_SIM_QUIET"] = "1";
const OK = 0, BAD_ADDRESS = 700, TIMEOUT = 702, LAUNCH_FAILED = 719;

interface Case {
  readonly kernel: string;
  readonly status: number;
  readonly block?: number;
  readonly shared?: number;
  /** Arguments, given 1000 floats. */
  readonly args?: (floats: DeviceMemory) => Argument[];
}
const cases: Record<string, Case> = {
  "the last element": { kernel: "write_at", status: OK, args: (p) => [p, 999n] },
  "a write past the end": { kernel: "write_at", status: BAD_ADDRESS, args: (p) => [p, 1000n] },
  "a read before the start": { kernel: "read_at", status: BAD_ADDRESS, args: (p) => [p, -4000n, p] },
  "a null pointer": { kernel: "read_at", status: BAD_ADDRESS, args: (p) => [0n, 0n, p] },
  "a misaligned vector": { kernel: "read_vector_at", status: LAUNCH_FAILED, args: (p) => [p, 4, p] },
  "a shift by 32": { kernel: "shift_by", status: LAUNCH_FAILED, args: (p) => [p, 32] },
  "static shared memory past its end": {
    kernel: "static_shared_at",
    status: LAUNCH_FAILED,
    args: (p) => [8, p],
  },
  "the last of dynamic shared memory": {
    kernel: "dynamic_shared_at",
    status: OK,
    shared: 64,
    args: (p) => [15, p],
  },
  "dynamic shared memory past its end": {
    kernel: "dynamic_shared_at",
    status: LAUNCH_FAILED,
    shared: 64,
    args: (p) => [16, p],
  },
  "a barrier that some do not reach": {
    kernel: "divergent_barrier",
    block: 32,
    status: LAUNCH_FAILED,
    args: () => [0],
  },
  "a shuffle from a lane outside": { kernel: "shuffle_from_outside", block: 32, status: LAUNCH_FAILED },
  "a mask without the caller": { kernel: "mask_without_caller", block: 32, status: LAUNCH_FAILED },
  "masks that differ": { kernel: "masks_differ", block: 2, status: LAUNCH_FAILED },
  "a trap": { kernel: "trap", status: LAUNCH_FAILED, args: () => [0] },
  "a stack that is full": { kernel: "recurse", status: BAD_ADDRESS, args: (p) => [1000, p] },
};

for (const seed of SEEDS) {
  Deno.test(`faults of kernels, seed ${seed}`, async (t) => {
    using _ = environment({ CUDA_SIM_SEED: String(seed) });
    for (
      const [name, { kernel, status, block = 1, shared = 0, args = (p: DeviceMemory) => [p] }] of Object
        .entries(cases)
    ) {
      await t.step(name, () => {
        using simulator = new Simulator();
        const floats = simulator.alloc(new Float32Array(1000));
        assert.equal(simulator.status(kernel, { block, shared }, args(floats)), status);
        // The error stays, whatever is called.
        assert.equal(statusOf(() => simulator.context.memory()), status);
      });
    }
  });
}

Deno.test("memory that was freed", () => {
  using simulator = new Simulator();
  const freed = simulator.alloc(new Float32Array(1000)), address = freed.address;
  freed[Symbol.dispose]();
  const others = Array.from({ length: 50 }, () => simulator.alloc(4000));
  assert.ok(others.every((other) => other.address !== address), "addresses are not used again");
  assert.equal(simulator.status("write_at", {}, [address, 0n]), BAD_ADDRESS);
});

Deno.test("a kernel that does not end, with and without pauses", () => {
  using _ = environment({ CUDA_SIM_TIMEOUT_MS: "100" });
  for (const kernel of ["spin", "spin_without_pause"]) {
    using simulator = new Simulator();
    const start = performance.now();
    assert.equal(simulator.status(kernel, { block: 32 }, [simulator.alloc(new Float32Array(1))]), TIMEOUT);
    assert.ok(performance.now() - start < 5000);
  }
});

Deno.test("a missing barrier: what was not yet written reads as NaN", () => {
  using simulator = new Simulator();
  const out = simulator.alloc(256);
  assert.equal(simulator.status("missing_barrier", { block: 64 }, [out]), OK);
  assert.ok(simulator.floats(out).some(Number.isNaN));
});

Deno.test("memory that was never written reads as NaN", () => {
  using simulator = new Simulator();
  assert.ok(simulator.floats(simulator.alloc(64)).every(Number.isNaN));
});

Deno.test("a seed changes the order of threads and of blocks", () => {
  const winners = (seed: number, kernel: string, shape: { grid?: number; block?: number }) => {
    using _ = environment({ CUDA_SIM_SEED: String(seed) });
    using simulator = new Simulator();
    const out = simulator.alloc(4);
    return Array.from({ length: 8 }, () => {
      assert.equal(simulator.status(kernel, shape, [out]), OK);
      return simulator.ints(out)[0]!;
    });
  };
  assert.ok(new Set(winners(1, "last_thread_wins", { block: 64 })).size > 3);
  assert.ok(new Set(winners(1, "last_block_wins", { grid: 64 })).size > 3);
  assert.deepEqual(winners(-1, "last_block_wins", { grid: 64 }), Array(8).fill(0));
  assert.deepEqual(winners(0, "last_block_wins", { grid: 64 }), Array(8).fill(63));
});
