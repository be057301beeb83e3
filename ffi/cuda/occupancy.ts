/** How many blocks of a kernel a multiprocessor holds at the same time: the calculation of NVIDIA's occupancy calculator. */

/** CUDA C++ programming guide, "Technical Specifications per Compute Capability"; and allocation units of cuda_occupancy.h. */
interface Limits {
  readonly warps: number;
  readonly blocks: number;
  /** Bytes of a multiprocessor. */
  readonly shared: number;
  /** Bytes that a block takes besides what it asks for. */
  readonly sharedReserved: number;
  readonly sharedUnit: number;
}
const KIB = 1024;
const LIMITS: Readonly<Record<number, Limits>> = {
  75: { warps: 32, blocks: 16, shared: 64 * KIB, sharedReserved: 0, sharedUnit: 256 },
  80: { warps: 64, blocks: 32, shared: 164 * KIB, sharedReserved: KIB, sharedUnit: 128 },
  86: { warps: 48, blocks: 16, shared: 100 * KIB, sharedReserved: KIB, sharedUnit: 128 },
  89: { warps: 48, blocks: 24, shared: 100 * KIB, sharedReserved: KIB, sharedUnit: 128 },
  90: { warps: 64, blocks: 32, shared: 228 * KIB, sharedReserved: KIB, sharedUnit: 128 },
};
/** The same for all of these. Registers are given to warps, of which each quarter of a multiprocessor holds its own. */
const REGISTERS = 65536, REGISTER_UNIT = 256, QUARTERS = 4, WARP = 32;

export interface BlockNeeds {
  /** 10 * major + minor. One of 75, 80, 86, 89, 90. */
  readonly capability: number;
  /** Threads of a block. */
  readonly threads: number;
  /** Registers of a thread. */
  readonly registers: number;
  /** Bytes of shared memory of a block, static and dynamic. */
  readonly shared: number;
}

export interface Occupancy {
  readonly blocks: number;
  readonly warps: number;
  /** Of the warps that a multiprocessor can hold. */
  readonly share: number;
  readonly limitedBy: "warps" | "blocks" | "registers" | "shared";
}

/** @throws RangeError for a capability that is not listed */
export function occupancy({ capability, threads, registers, shared }: BlockNeeds): Occupancy {
  const limits = LIMITS[capability];
  if (limits === undefined) {
    throw new RangeError(`no limits are known of compute capability ${capability / 10}`);
  }
  const up = (value: number, unit: number) => Math.ceil(value / unit) * unit;
  const warps = Math.ceil(threads / WARP);
  const registersOfWarp = up(Math.max(registers, 1) * WARP, REGISTER_UNIT);
  const warpsByRegisters = Math.floor(REGISTERS / QUARTERS / registersOfWarp) * QUARTERS;
  const sharedOfBlock = up(shared + limits.sharedReserved, limits.sharedUnit);
  const by = {
    warps: Math.floor(limits.warps / warps),
    blocks: limits.blocks,
    registers: Math.floor(warpsByRegisters / warps),
    shared: sharedOfBlock === 0 ? Infinity : Math.floor(limits.shared / sharedOfBlock),
  } as const;
  const blocks = Math.min(...Object.values(by));
  const limitedBy = (["warps", "registers", "shared", "blocks"] as const).find((name) =>
    by[name] === blocks
  )!;
  return { blocks, warps: blocks * warps, share: blocks * warps / limits.warps, limitedBy };
}
