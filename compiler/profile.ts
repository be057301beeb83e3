/**
 * What the cost model knows of a machine. Profiles are measured by `hcinfer profile` or come with hcinfer; those that
 * come with it are for planning and say that they were not measured.
 */
import { z } from "zod";
import { HcinferError } from "./errors.ts";

const rate = z.number().positive().finite();

export const CpuProfile = z.strictObject({
  name: z.string(),
  cores: z.int().positive().max(4096),
  /** Gigabytes per second that 1, 2, ... threads read together; more threads than entries read as the last. */
  readBandwidth: z.array(rate).min(1),
  /** Billions of multiply-adds per second of one core: int8 into int32, and fp32. */
  int8Rate: rate,
  fp32Rate: rate,
  /** Microseconds to start an instruction of a step on all threads and to wait for the slowest. */
  instructionOverhead: z.number().nonnegative().finite(),
  /** What of readBandwidth is left where rows of 1 kB are chosen here and there; absent: all of it. */
  gatherShare: rate.max(2).optional(),
  /** Billions of multiply-adds per second of one core in attention over keys and values in f16; absent: fp32Rate. */
  attentionRate: rate.optional(),
  /** Bytes of memory; absent: unknown. */
  memory: z.int().positive().optional(),
});
export type CpuProfile = z.infer<typeof CpuProfile>;

export const GpuProfile = z.strictObject({
  name: z.string(),
  memory: z.int().positive(),
  /** Gigabytes per second of its own memory. */
  readBandwidth: rate,
  /** Billions of multiply-adds per second outside tensor cores, for few tokens: int8 (dp4a) and fp32. */
  int8Rate: rate,
  fp32Rate: rate,
  /** The same of tensor cores, for prompts: int8 into int32, and 16-bit floats into fp32. */
  tensorInt8Rate: rate,
  tensorHalfRate: rate,
  /** Gigabytes per second from pinned host memory to the GPU. */
  linkBandwidth: rate,
  /** Microseconds: of a kernel inside a launched graph; until a value written by one side is seen by the other. */
  instructionOverhead: z.number().nonnegative().finite(),
  linkLatency: z.number().nonnegative().finite(),
});
export type GpuProfile = z.infer<typeof GpuProfile>;

export const MachineProfile = z.strictObject({
  name: z.string(),
  /** False: numbers from data sheets, for planning. */
  measured: z.boolean(),
  cpu: CpuProfile,
  gpu: GpuProfile.optional(),
});
export type MachineProfile = z.infer<typeof MachineProfile>;

const GIB = 2 ** 30;

const desktop: CpuProfile = {
  name: "8 cores, AVX2, dual-channel DDR5-5600",
  cores: 8,
  readBandwidth: [28, 48, 60, 66, 68, 70, 70, 70],
  int8Rate: 240,
  fp32Rate: 60,
  instructionOverhead: 2,
};

/**
 * 32 cores of a server: 8 channels of DDR5-4800 are 307 GB/s, of which reading reaches some three quarters; a core alone
 * keeps 14 GB/s in flight.
 */
const server: CpuProfile = {
  name: "32 cores, AVX-512 with VNNI, eight-channel DDR5-4800",
  cores: 32,
  readBandwidth: Array.from({ length: 32 }, (_, i) => Math.min(14 * (i + 1), 240)),
  int8Rate: 300,
  fp32Rate: 70,
  instructionOverhead: 2,
};

/**
 * Profiles by name. Rates of GPUs are those of NVIDIA's data sheets, halved where these count an add and a multiply as two
 * and without sparsity; dp4a is four products on each of the 64 integer units of a multiprocessor, beside 128 for fp32.
 * Links are what pinned copies reach, about 0.8 of PCIe's 2 (version 4) or 4 (version 5) GB/s a lane.
 */
export const PROFILES = {
  "generic-2-core": {
    name: "generic-2-core",
    measured: false,
    cpu: {
      name: "2 cores, AVX-512 with VNNI, server memory",
      cores: 2,
      readBandwidth: [20, 38],
      int8Rate: 300,
      fp32Rate: 70,
      instructionOverhead: 1,
    },
  },
  "generic-8-core": { name: "generic-8-core", measured: false, cpu: desktop },
  "rtx-4060-laptop": {
    name: "rtx-4060-laptop",
    measured: false,
    cpu: { ...desktop, name: "8 cores, AVX2, dual-channel DDR5-4800", readBandwidth: [25, 42, 52, 58, 60] },
    gpu: {
      name: "GeForce RTX 4060 Laptop",
      memory: 8 * GIB,
      readBandwidth: 256,
      int8Rate: 14_000,
      fp32Rate: 7_000,
      tensorInt8Rate: 50_000,
      tensorHalfRate: 12_500,
      linkBandwidth: 13, // PCIe 4 x8
      instructionOverhead: 1.5,
      linkLatency: 2,
    },
  },
  "rtx-4090": {
    name: "rtx-4090",
    measured: false,
    cpu: { ...desktop, name: "16 cores, AVX-512, dual-channel DDR5-6000", cores: 16 },
    gpu: {
      name: "GeForce RTX 4090",
      memory: 24 * GIB,
      readBandwidth: 1008,
      int8Rate: 82_000,
      fp32Rate: 41_000,
      tensorInt8Rate: 330_000,
      tensorHalfRate: 82_500,
      linkBandwidth: 26, // PCIe 4 x16
      instructionOverhead: 1.5,
      linkLatency: 1.5,
    },
  },
  "h200": {
    name: "h200",
    measured: false,
    cpu: server,
    gpu: {
      name: "H200 SXM",
      memory: 140 * GIB, // 141 GB of HBM3e at 4.8 TB/s; the driver shows a little more than 140 GiB
      readBandwidth: 4800,
      int8Rate: 67_000,
      fp32Rate: 33_500,
      tensorInt8Rate: 989_000,
      tensorHalfRate: 494_000,
      linkBandwidth: 52, // PCIe 5 x16
      instructionOverhead: 1.5,
      linkLatency: 1.5,
    },
  },
} as const satisfies Record<string, MachineProfile>;

/** The machine that a plan says it was made for, if any. */
export function profileOf({ provenance }: { readonly provenance: Readonly<Record<string, unknown>> }) {
  const kept = MachineProfile.safeParse(provenance.profile);
  return kept.success ? kept.data : undefined;
}

/** The profile used where nothing was measured: by the machine's number of cores. */
export function genericProfile(cores: number): MachineProfile {
  return cores <= 4 ? PROFILES["generic-2-core"] : PROFILES["generic-8-core"];
}

/**
 * A profile from JSON text.
 *
 * @throws HcinferError "usage" naming the file and every field that does not fit.
 */
export function parseProfile(text: string, file: string): MachineProfile {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch (cause) {
    throw new HcinferError(
      "usage",
      `${file}: not JSON (${(cause as Error).message}); write one with "hcinfer profile"`,
      {
        cause,
      },
    );
  }
  const result = MachineProfile.safeParse(data);
  if (result.success) return result.data;
  throw new HcinferError("usage", `${file}: not a machine profile\n${z.prettifyError(result.error)}`);
}

/** Bytes per second that `threads` threads read together. */
export function readBandwidth(cpu: CpuProfile, threads: number): number {
  const table = cpu.readBandwidth;
  return 1e9 * (table[Math.min(Math.max(threads, 1), table.length) - 1] ?? 1);
}
