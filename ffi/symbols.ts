/**
 * The native library's functions, as data: one table per module. Every name starts with `hc_`. Functions return 0
 * (or a pointer) when they succeed; what else they return is said beside them.
 */

/** Must equal HC_ABI_VERSION in simd/mapping.cpp: raised whenever a signature changes. */
export const ABI_VERSION = 1;

export const abi = {
  hc_abi_version: { parameters: [], result: "u32" },
} as const;

export const mapping = {
  /** (path, size: u64[1] out, message: u8[256] out) -> address, null with a message. An empty file: null, no message. */
  hc_map_file: { parameters: ["buffer", "buffer", "buffer"], result: "pointer" },
  /** (bytes) -> address of zeroed memory at a page boundary, null when there is none. */
  hc_allocate: { parameters: ["u64"], result: "pointer" },
  /** (address, bytes) of either of the two above. */
  hc_unmap: { parameters: ["pointer", "u64"], result: "void" },
} as const;

export const symbols = { ...abi, ...mapping } as const;
