/** Measures what the cost model (compiler/cost.ts) asks of a machine, with the kernels that steps use. */
import { cpus, totalmem } from "node:os";
import { performance } from "node:perf_hooks";
import { PREDICTED_CONTEXT } from "../compiler/cost.ts";
import { PAGE_POSITIONS } from "../compiler/memory.ts";
import type { MachineProfile } from "../compiler/profile.ts";
import { packedShape, type WeightFormat } from "../compiler/weights/format.ts";
import { Engine } from "../ffi/engine.ts";
import type { Instruction, Operand } from "../ffi/instructions.ts";
import { allocate, type NativeBuffer } from "../ffi/mapping.ts";
import { memoryBandwidth } from "../ffi/measure.ts";
import { Gather } from "./gather.ts";

/** A matrix that stays in a core's own cache, and enough tokens to hide its unpacking. */
const ROWS = 256;
const INPUTS = 1024;
const TOKENS = 64;
/** Every figure is the median of so many measurements, the best of what fits into so many milliseconds each. */
const ROUNDS = 5;
const MILLISECONDS = 50;
/** Measurements that differ by more, of their median, were disturbed. */
const MOST_SPREAD = 0.2;
/** Where rows lie: many times what caches hold; and steps of a measurement. */
const GATHER_BYTES = 2 ** 28, GATHER_STEPS = 3;
const Q8: WeightFormat = { kind: "q8", group: 64 };

/** A figure whose measurements differ by more than a fifth: another program ran, or clocks changed. */
export interface Disagreement {
  readonly what: string;
  readonly least: number;
  readonly most: number;
  readonly unit: string;
}

export interface MeasuredMachine {
  readonly profile: MachineProfile;
  readonly disagreements: readonly Disagreement[];
}

/**
 * This machine as a profile, for up to `threads` threads. Takes a second or two a thread. Measurements of one kind are spread
 * over the whole time, so that a disturbance of a second does not spoil all of them.
 * @param onProgress measurements done, of how many, and what is measured next
 */
export function measureMachine(
  threads: number,
  onProgress?: (done: number, total: number, what: string) => void,
): MeasuredMachine {
  const memory = Array.from({ length: threads }, (_, n): Figure => ({
    what: `memory, ${n + 1} thread${n > 0 ? "s" : ""}`,
    unit: "GB/s",
    measure: () => memoryBandwidth("read", n + 1, 2) / 1e9,
  }));
  const rates: Figure[] = [
    { what: "int8 arithmetic", unit: "G/s", measure: () => linearRate(Q8) },
    { what: "fp32 arithmetic", unit: "G/s", measure: () => linearRate({ kind: "bf16" }) },
    { what: "attention", unit: "G/s", measure: () => attentionRate(threads) },
    { what: "starting an instruction", unit: "us", measure: () => barrierMicroseconds(threads) },
  ];
  using windows = allocate(GATHER_BYTES, "huge");
  windows.bytes.fill(1);
  using gather = new Gather(windows, 1024, threads, true);
  const rows: Figure = {
    what: "rows here and there",
    unit: "GB/s",
    measure: () => best(GATHER_STEPS, () => gather.measure()) / 1e9,
  };
  const { values, disagreements } = medians([...memory, ...rates, rows], onProgress);
  const [int8Rate = 0, fp32Rate = 0, attention = 0, instructionOverhead = 0, gathered = 0] = values.slice(
    threads,
  );
  // Profiles go into bundles, which are given away: no name of this machine.
  const name = cpus()[0]?.model.trim() || "unknown";
  const readBandwidth = values.slice(0, threads);
  const gatherShare = rounded(gathered / readBandwidth.at(-1)!);
  const cpu = {
    name,
    cores: threads,
    readBandwidth,
    int8Rate,
    fp32Rate,
    instructionOverhead,
    gatherShare,
    attentionRate: attention,
  };
  return { profile: { name, measured: true, cpu: { ...cpu, memory: totalmem() } }, disagreements };
}

/** Something to measure. */
export interface Figure {
  readonly what: string;
  readonly unit: string;
  readonly measure: () => number;
}

/** Every figure's median over rounds of all of them, and those that did not agree. */
export function medians(
  figures: readonly Figure[],
  onProgress?: (done: number, total: number, what: string) => void,
): { readonly values: number[]; readonly disagreements: Disagreement[] } {
  const found = figures.map((): number[] => []);
  const total = ROUNDS * figures.length;
  for (let round = 0; round < ROUNDS; round++) {
    figures.forEach(({ what, measure }, i) => {
      onProgress?.(round * figures.length + i, total, what);
      found[i]!.push(measure());
    });
  }
  onProgress?.(total, total, "");
  const sorted = found.map((values) => values.toSorted((a, b) => a - b));
  const values = sorted.map((values) => rounded(values[Math.floor(ROUNDS / 2)]!));
  const disagreements = figures.flatMap(({ what, unit }, i) => {
    const [least, most] = [sorted[i]![0]!, sorted[i]!.at(-1)!];
    const isSteady = most - least <= MOST_SPREAD * values[i]!;
    return isSteady ? [] : [{ what, unit, least: rounded(least), most: rounded(most) }];
  });
  return { values, disagreements };
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

/** Billions of multiply-adds per second of each of `threads` that attend to `PREDICTED_CONTEXT` positions, of more layers than a cache holds. */
function attentionRate(threads: number): number {
  const [heads, kvHeads, headDim, context] = [16, 8, 128, PREDICTED_CONTEXT];
  const pageCount = context / PAGE_POSITIONS, layers = 128;
  const cacheBytes = 2 * pageCount * kvHeads * headDim * PAGE_POSITIONS;
  const arena = (offset: number): Operand => ({ segment: "arena", offset });
  // Page numbers, the token's position, its sequence and its tile; queries and outputs behind them.
  const at = { pages: 0, positions: 4 * pageCount, sequences: 4 * pageCount + 4, tiles: 4 * pageCount + 8 };
  const q = 4 * pageCount + 64, out = q + 4 * heads * headDim;
  const program = Array.from({ length: layers }, (_, layer): Instruction => ({
    op: "attend",
    ...EVERY_TOKEN,
    operands: {
      q: arena(q),
      out: arena(out),
      cacheK: { segment: "cache", offset: 2 * layer * cacheBytes },
      cacheV: { segment: "cache", offset: (2 * layer + 1) * cacheBytes },
      tiles: arena(at.tiles),
      positions: arena(at.positions),
      sequences: arena(at.sequences),
      pages: arena(at.pages),
    },
    integers: { heads, kvHeads, headDim, pageCount, mostSequences: 1, mostPages: pageCount, context },
    reals: { scale: 1 },
  }));
  const words = Int32Array.from([...Array(pageCount).keys(), context - 1, 0, 0, 1]);
  const bytes = { weights: 64, arena: out + 4 * heads * headDim, cache: 2 * layers * cacheBytes };
  const fill = (arena: NativeBuffer, cache: NativeBuffer) => {
    arena.bytes.set(new Uint8Array(words.buffer));
    cache.bytes.fill(1);
  };
  const seconds = secondsOf(program, bytes, threads, 1, fill);
  return 2 * layers * context * heads * headDim / threads / seconds / 1e9;
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
  bytes: { readonly weights: number; readonly arena: number; readonly cache?: number },
  threads: number,
  tokens: number,
  fill: (arena: NativeBuffer, cache: NativeBuffer) => void = () => {},
): number {
  using weights = allocate(bytes.weights);
  const arena = allocate(bytes.arena), cache = allocate(bytes.cache ?? 0);
  fill(arena, cache);
  using engine = new Engine({
    lanes: [{ program, threads }],
    memory: { weights, arena, cache },
    capacity: tokens,
  });
  let best = Infinity;
  for (const end = performance.now() + MILLISECONDS; performance.now() < end;) {
    const started = performance.now();
    engine.step({ tokens, rows: 0, tiles: tokens === 1 ? 1 : 0, mode: "prefill" });
    best = Math.min(best, performance.now() - started);
  }
  return best / 1000;
}

function best(times: number, measure: () => number): number {
  return Math.max(...Array.from({ length: times }, measure));
}

/** Two significant decimals: measurements are no better. */
function rounded(value: number): number {
  return Number(value.toPrecision(3));
}
