/** Measures what the cost model (compiler/cost.ts) asks of a machine, with the kernels that steps use. */
import { cpus, totalmem } from "node:os";
import { performance } from "node:perf_hooks";
import type { MachineProfile } from "../compiler/profile.ts";
import { packedShape, type WeightFormat } from "../compiler/weights/format.ts";
import { Engine } from "../ffi/engine.ts";
import type { Instruction, Operand } from "../ffi/instructions.ts";
import { allocate } from "../ffi/mapping.ts";
import { memoryBandwidth } from "../ffi/measure.ts";

/** A matrix that stays in a core's own cache, and enough tokens to hide its unpacking. */
const ROWS = 256;
const INPUTS = 1024;
const TOKENS = 64;
const MILLISECONDS = 200;
const Q8: WeightFormat = { kind: "q8", group: 64 };

/**
 * This machine as a profile, for up to `threads` threads. Takes about a second a thread.
 * @param onProgress measurements done, of how many, and what is measured next
 */
export function measureMachine(
  threads: number,
  onProgress?: (done: number, total: number, what: string) => void,
): MachineProfile {
  const total = threads + 3;
  const readBandwidth: number[] = [];
  for (let n = 1; n <= threads; n++) {
    onProgress?.(n - 1, total, `memory, ${n} threads`);
    readBandwidth.push(rounded(memoryBandwidth("read", n) / 1e9));
  }
  onProgress?.(threads, total, "int8 arithmetic");
  const int8Rate = rounded(linearRate(Q8));
  onProgress?.(threads + 1, total, "fp32 arithmetic");
  const fp32Rate = rounded(linearRate({ kind: "bf16" }));
  onProgress?.(threads + 2, total, "starting an instruction");
  const instructionOverhead = rounded(barrierMicroseconds(threads));
  onProgress?.(total, total, "");
  // Profiles go into bundles, which are given away: no name of this machine.
  const cpuName = cpus()[0]?.model.trim() || "unknown";
  return {
    name: cpuName,
    measured: true,
    cpu: {
      name: cpuName,
      cores: threads,
      readBandwidth,
      int8Rate,
      fp32Rate,
      instructionOverhead,
      memory: totalmem(),
    },
  };
}

const EVERY_TOKEN = { over: "tokens", when: "always", barrier: true, awaits: 0 } as const;
const NO_RESIDUAL = { residualWidth: 0, residualInputs: 0, residualOutputs: 0, rowBytes: 0 } as const;
const FORMAT_CODES = { bf16: 0, q8: 1 } as const;

/** Billions of multiply-adds per second of one thread in a prompt's linear: int8 for q8, fp32 for bf16. */
function linearRate(format: WeightFormat): number {
  const { bytes } = packedShape(format, ROWS, INPUTS);
  const group = format.kind === "bf16" ? 0 : format.group;
  const groups = group === 0 ? 0 : INPUTS / group;
  const sizes = { x: 4 * INPUTS, codes: INPUTS, scales: 4 * groups, sums: 4 * groups, y: 4 * ROWS };
  const place: Record<string, Operand> = {};
  let arenaBytes = 0;
  for (const [name, size] of Object.entries(sizes)) {
    place[name] = { segment: "arena", offset: arenaBytes };
    arenaBytes += Math.ceil(size * TOKENS / 64) * 64;
  }
  const { x, y, ...quantized } = place;
  const linear: Instruction = {
    op: "linear",
    ...EVERY_TOKEN,
    operands: {
      packed: { segment: "weights", offset: 0 },
      x,
      y,
      ...(group === 0 ? {} : quantized),
    },
    integers: {
      format: FORMAT_CODES[format.kind === "bf16" ? "bf16" : "q8"],
      rows: ROWS,
      inputs: INPUTS,
      xStride: INPUTS,
      yStride: ROWS,
      group,
      groups,
      codeStride: group === 0 ? 0 : INPUTS,
      ...NO_RESIDUAL,
    },
    reals: {},
  };
  return ROWS * INPUTS * TOKENS / secondsOf([linear], { weights: bytes, arena: arenaBytes }, 1, TOKENS) / 1e9;
}

/** Microseconds that an instruction costs beside its work: the smallest one, started on every thread. */
function barrierMicroseconds(threads: number): number {
  const count = 256;
  const nothing: Instruction = {
    op: "quantize",
    ...EVERY_TOKEN,
    operands: { x: { segment: "arena", offset: 0 } },
    integers: { width: 16, xStride: 16, group: 0, groups: 0, codeStride: 0 },
    reals: {},
  };
  const program = Array.from({ length: count }, () => nothing);
  return secondsOf(program, { weights: 64, arena: 4096 }, threads, 1) / count * 1e6;
}

/** Seconds of a step of `program`, the best of as many as fit the time. */
function secondsOf(
  program: readonly Instruction[],
  bytes: { readonly weights: number; readonly arena: number },
  threads: number,
  tokens: number,
): number {
  using weights = allocate(bytes.weights);
  const nothing = allocate(0);
  using engine = new Engine({
    lanes: [{ program, threads }],
    memory: {
      weights,
      arena: allocate(bytes.arena),
      cache: nothing,
      tables: nothing,
      step: nothing,
      mailbox: nothing,
      logits: nothing,
      observations: nothing,
    },
    capacity: tokens,
  });
  let best = Infinity;
  for (const end = performance.now() + MILLISECONDS; performance.now() < end;) {
    const started = performance.now();
    engine.step({ tokens, rows: 0, tiles: 0, mode: "prefill" });
    best = Math.min(best, performance.now() - started);
  }
  return best / 1000;
}

/** Two significant decimals: measurements are no better. */
function rounded(value: number): number {
  return Number(value.toPrecision(3));
}
