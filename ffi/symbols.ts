/**
 * The native library's functions, as data: one table per module. Every name starts with `hc_`. Functions return 0
 * (or a pointer) when they succeed; what else they return is said beside them.
 */

/** Must equal HC_ABI_VERSION in simd/mapping.cpp: raised whenever a signature changes. */
export const ABI_VERSION = 7;

export const abi = {
  hc_abi_version: { parameters: [], result: "u32" },
} as const;

export const mapping = {
  /** (path, size: u64[1] out, message: u8[256] out) -> address, null with a message. An empty file: null, no message. */
  hc_map_file: { parameters: ["buffer", "buffer", "buffer"], result: "pointer" },
  /** (bytes) -> address of zeroed memory at a page boundary, null when there is none. */
  hc_allocate: { parameters: ["u64", "i32"], result: "pointer" },
  /** (address, bytes) of either of the two above. */
  hc_unmap: { parameters: ["pointer", "u64"], result: "void" },
} as const;

export const files = {
  /** (path, create or 0) -> descriptor of the file, locked; negative when it is not. */
  hc_lock_file: { parameters: ["buffer", "i32"], result: "i32" },
  /** (path) -> as above, once the lock is free. */
  hc_lock_folder: { parameters: ["buffer"], result: "i32" },
  hc_unlock_file: { parameters: ["i32"], result: "void" },
  /** (path, path) -> 0 when they are exchanged. */
  hc_exchange: { parameters: ["buffer", "buffer"], result: "i32" },
} as const;

export const interrupts = {
  hc_watch_interrupts: { parameters: [], result: "void" },
  /** () -> number of the signal, 0 for none. */
  hc_interrupt: { parameters: [], result: "i32" },
  hc_unwatch_interrupts: { parameters: [], result: "void" },
} as const;

const GRID = ["i32", "i32", "i64", "i64", "buffer", "buffer", "buffer", "buffer"] as const;

/** Arguments stand at the functions in simd/packing.cpp; results are PACKING_STATUS, hc_quantize's also an index. */
export const packing = {
  hc_quantize: {
    parameters: ["buffer", "i32", "i64", "i64", "i32", "i32", "buffer", "buffer", "i32"],
    result: "i64",
  },
  hc_error: {
    parameters: ["buffer", "i32", "i64", "i64", "i32", "i32", "buffer", "buffer", "i32"],
    result: "i64",
  },
  /** (format, group, rows, inputs, codes, factor, scale, zero, packed, threads); the second writes what the first reads. */
  hc_pack_grid: { parameters: [...GRID, "buffer", "i32"], result: "void" },
  hc_unpack_grid: { parameters: [...GRID, "buffer", "i32"], result: "void" },
  hc_pack_residual: {
    parameters: ["buffer", "i64", "i64", "i32", "buffer", "i64", "buffer", "buffer", "buffer", "i32"],
    result: "i64",
  },
  hc_singular_vectors: {
    parameters: ["buffer", "i64", "i64", "i64", "buffer", "buffer", "buffer", "buffer", "i32"],
    result: "i64",
  },
  hc_encode_factors: {
    parameters: ["buffer", "i64", "i64", "i32", "buffer", "buffer", "i32"],
    result: "i64",
  },
  /** (bytes, count, threads) -> 64 bits. */
  hc_checksum: { parameters: ["buffer", "u64", "i32"], result: "u64" },
} as const;

/** Arguments stand at the functions in simd/dense*.cpp; results are PACKING_STATUS. */
export const dense = {
  hc_gemm: {
    parameters: [
      "i64",
      "i64",
      "i64",
      "buffer",
      "i64",
      "i64",
      "buffer",
      "i64",
      "i64",
      "buffer",
      "i64",
      "i32",
      "i32",
    ],
    result: "i64",
  },
  hc_add_gram: { parameters: ["buffer", "i64", "i64", "buffer", "i32"], result: "i64" },
  hc_add_moments: {
    parameters: [
      "buffer",
      "i64",
      "i64",
      "buffer",
      "f32",
      "i64",
      "buffer",
      "buffer",
      "buffer",
      "buffer",
      "i32",
    ],
    result: "i64",
  },
  hc_all_finite: { parameters: ["buffer", "i64", "i32"], result: "i64" },
  hc_rms_norm: {
    parameters: ["buffer", "buffer", "i64", "i32", "buffer", "f32", "buffer", "buffer", "i32"],
    result: "i64",
  },
  hc_elementwise: { parameters: ["i32", "buffer", "buffer", "i64", "buffer", "i32"], result: "i64" },
  hc_silu_mul: { parameters: ["buffer", "buffer", "i64", "buffer", "i32"], result: "i64" },
  hc_rope: {
    parameters: ["buffer", "i64", "i32", "i32", "buffer", "buffer", "buffer", "i32", "buffer", "i32"],
    result: "i64",
  },
  hc_attention: {
    parameters: [
      "buffer",
      "buffer",
      "buffer",
      "i64",
      "i64",
      "i64",
      "i64",
      "i64",
      "f32",
      "buffer",
      "i32",
    ],
    result: "i64",
  },
} as const;

export const PACKING_STATUS = { done: -1n, outOfMemory: -2n, wrongIsa: -3n } as const;

/** Arguments stand at the functions in simd/calibration.cpp; results are PACKING_STATUS. */
export const calibration = {
  hc_add_squares: { parameters: ["buffer", "i64", "i64", "buffer", "buffer", "i32"], result: "i64" },
  hc_norm_gradient: {
    parameters: ["buffer", "buffer", "buffer", "buffer", "i64", "i64", "f32", "i32"],
    result: "i64",
  },
  hc_silu_mul_gradient: {
    parameters: ["buffer", "buffer", "buffer", "buffer", "buffer", "i64", "i32"],
    result: "i64",
  },
  hc_sample_gradient: { parameters: ["buffer", "i64", "i64", "buffer", "buffer", "i32"], result: "i64" },
  hc_attention_gradient: {
    parameters: [
      "buffer",
      "buffer",
      "buffer",
      "buffer",
      "buffer",
      "buffer",
      "buffer",
      "i64",
      "i64",
      "i64",
      "i64",
      "i64",
      "f32",
      "i32",
    ],
    result: "i64",
  },
} as const;

/** Arguments stand at the functions in simd/fitting.cpp; results are PACKING_STATUS or FITTING_STATUS. */
export const fitting = {
  /** (values, count, limit, threads) -> the index of the first that is NaN or beyond +-limit, -1 for none. */
  hc_first_beyond: { parameters: ["buffer", "i64", "f32", "i32"], result: "i64" },
  hc_prepare_moments: {
    parameters: ["buffer", "i64", "f64", "buffer", "buffer", "buffer", "buffer", "i32"],
    result: "i64",
  },
  hc_fit_weight: {
    parameters: [
      "buffer",
      "i64",
      "i64",
      "i32",
      "i32",
      "i32",
      "buffer",
      "f64",
      "buffer",
      "buffer",
      "i32",
      "i32",
      "buffer",
      "buffer",
      "buffer",
      "buffer",
      "buffer",
      "i32",
    ],
    result: "i64",
  },
  hc_fit_rows: {
    parameters: [
      "buffer",
      "buffer",
      "i64",
      "i64",
      "buffer",
      "buffer",
      "buffer",
      "f64",
      "f64",
      "i32",
      "buffer",
      "i64",
      "buffer",
      "buffer",
      "buffer",
      "buffer",
      "i32",
    ],
    result: "i64",
  },
  hc_remaining_energy: {
    parameters: ["buffer", "buffer", "i64", "i64", "buffer", "buffer", "buffer", "buffer", "i32"],
    result: "i64",
  },
} as const;

export const FITTING_STATUS = { notDefinite: -4n } as const;

export const engine = {
  /** () -> the instruction set in use, null with hc_engine_error() set. */
  hc_isa: { parameters: [], result: "pointer" },
  hc_engine_error: { parameters: [], result: "pointer" },
  /** () -> what the last error of hc_engine_create was: ENGINE_FAILURE. */
  hc_engine_failure: { parameters: [], result: "i32" },
  /**
   * (records of all lanes, counts i64[lanes], threads i32[lanes], lanes, segment addresses u64[], sizes i64[], capacity,
   * nanoseconds to wait for a partner on another device, 0 for none) -> engine, null with hc_engine_error() and hc_engine_failure() set.
   */
  hc_engine_create: {
    parameters: ["buffer", "buffer", "buffer", "i32", "buffer", "buffer", "i32", "i64"],
    result: "pointer",
  },
  /** (records, count, sizes i64[], capacity) -> 0, or -1 with hc_engine_error() set. */
  hc_engine_check: { parameters: ["buffer", "i64", "buffer", "i32"], result: "i32" },
  /** (engine, tokens, rows, tiles, mode) -> STEP_STATUS. One call at a time. */
  hc_engine_step: { parameters: ["pointer", "i32", "i32", "i32", "i32"], result: "i32" },
  /** (engine, tokens, rows, tiles, mode) -> 0, or -1 with hc_engine_error() set. The step must be joined. */
  hc_engine_begin: { parameters: ["pointer", "i32", "i32", "i32", "i32"], result: "i32" },
  /** (engine) -> STEP_STATUS of the step that was begun, once it has ended. */
  hc_engine_join: { parameters: ["pointer"], result: "i32" },
  /** (engine). Says that the next function will be called; destroying the engine then ends that step first. */
  hc_engine_announce: { parameters: ["pointer"], result: "void" },
  /** `hc_engine_step` on a thread that is not JavaScript's. */
  hc_engine_step_async: {
    name: "hc_engine_step_announced",
    parameters: ["pointer", "i32", "i32", "i32", "i32"],
    result: "i32",
    nonblocking: true,
  },
  /** (engine, i32[3] out: layer, token, 0 for a key or 1 for a value), of the last step, which overflowed. */
  hc_engine_overflow: { parameters: ["pointer", "buffer"], result: "void" },
  /** (engine, times i64[] out, count). */
  hc_engine_trace: { parameters: ["pointer", "buffer", "i64"], result: "void" },
  /** (engine) -> bytes of scratch of all its threads. */
  hc_engine_scratch_bytes: { parameters: ["pointer"], result: "i64" },
  hc_engine_destroy: { parameters: ["pointer"], result: "void" },
  /** (logits f32[], count) -> index of the largest, the first among equals. */
  hc_argmax: { parameters: ["buffer", "i64"], result: "i64" },
  /** (logits, reference logits or null, count, target, negative log-likelihood f64[1] out, KL f64[1] out). */
  hc_token_loss: { parameters: ["buffer", "buffer", "i64", "i64", "buffer", "buffer"], result: "void" },
} as const;

export const STEP_STATUS = { done: 0, aborted: 1, overflow: 2, badCounts: 3, lost: 4 } as const;
export const ENGINE_FAILURE = { program: 0, environment: 1 } as const;

export const measure = {
  /** (copy or read, bytes, threads, rounds) -> bytes per second, 0 when there is no memory for it. */
  hc_measure_bandwidth: { parameters: ["i32", "u64", "i32", "i32"], result: "f64" },
} as const;

export const device = {
  /**
   * (engine, tokens, rows, tiles, mode, cuCtxSetCurrent, cuStreamSynchronize, context, stream, abort flag u32[1], CUresult
   * i32[1] out) -> STEP_STATUS, after the stream's work has ended, too.
   */
  hc_device_step: {
    parameters: [
      "pointer",
      "i32",
      "i32",
      "i32",
      "i32",
      "pointer",
      "pointer",
      "u64",
      "u64",
      "buffer",
      "buffer",
    ],
    result: "i32",
    nonblocking: true,
  },
  /** (cuCtxSetCurrent, cuStreamSynchronize, context, stream, i32[1] out: 1 when it no longer uses them) -> CUresult. */
  hc_device_wait: {
    parameters: ["pointer", "pointer", "u64", "u64", "buffer"],
    result: "i32",
    nonblocking: true,
  },
} as const;

/** Addresses of functions for cuLaunchHostFunc. */
export const hostFunctions = {
  /** (table). ffi/cuda/host_copy.ts. */
  hc_copy_parts: { type: "pointer" },
  /** (table). ffi/cuda/event_wait.ts. */
  hc_await_event: { type: "pointer" },
} as const;

export const symbols = {
  ...abi,
  ...mapping,
  ...files,
  ...interrupts,
  ...packing,
  ...calibration,
  ...dense,
  ...fitting,
  ...engine,
  ...measure,
  ...device,
  ...hostFunctions,
} as const;
