/**
 * The functions of NVIDIA's driver library that are used, as data, by the names that the library exports (`_v2` where the
 * plain name is an older form; see cuda.h). All return a CUresult. Every one is of CUDA 12.0 or older, but
 * those marked optional.
 */

declare const kind: unique symbol;
/** A driver's handle: a number that means something to the driver alone. Kinds cannot be mixed up. */
export type Handle<Kind extends string> = bigint & { readonly [kind]: Kind };

export type ContextHandle = Handle<"context">;
export type StreamHandle = Handle<"stream">;
export type EventHandle = Handle<"event">;
export type ModuleHandle = Handle<"module">;
export type FunctionHandle = Handle<"function">;
export type GraphHandle = Handle<"graph">;
export type GraphExecHandle = Handle<"executable graph">;
/** An address in the device's memory, or of pinned memory as the device sees it. */
export type DevicePointer = Handle<"device pointer">;
/** An address in this process. */
export type HostPointer = Handle<"host pointer">;

declare const value: unique symbol;
/** What Deno passes as 64 bits, and the type of it here. */
type Word<T> = "u64" & { readonly [value]: T };

const CONTEXT = "u64" as Word<ContextHandle>;
const STREAM = "u64" as Word<StreamHandle>;
const EVENT = "u64" as Word<EventHandle>;
const MODULE = "u64" as Word<ModuleHandle>;
const FUNCTION = "u64" as Word<FunctionHandle>;
const GRAPH = "u64" as Word<GraphHandle>;
const GRAPH_EXEC = "u64" as Word<GraphExecHandle>;
const DEVICE_POINTER = "u64" as Word<DevicePointer>;
const HOST_POINTER = "u64" as Word<HostPointer>;
const SIZE = "u64" as Word<bigint>;
/** CUdevice. */
const DEVICE = "i32";
/** Where the function writes, or bytes it reads, during the call. */
const BUFFER = "buffer";

const call = <const P extends readonly Deno.NativeType[]>(...parameters: P) => ({
  parameters,
  result: "i32",
} as const);

export const symbols = {
  cuInit: call("u32"),
  cuDriverGetVersion: call(BUFFER),
  cuGetErrorName: call("i32", BUFFER),
  cuGetErrorString: call("i32", BUFFER),

  cuDeviceGetCount: call(BUFFER),
  cuDeviceGet: call(BUFFER, "i32"),
  cuDeviceGetName: call(BUFFER, "i32", DEVICE),
  cuDeviceTotalMem_v2: call(BUFFER, DEVICE),
  cuDeviceGetAttribute: call(BUFFER, "i32", DEVICE),
  cuDevicePrimaryCtxSetFlags_v2: call(DEVICE, "u32"),
  cuDevicePrimaryCtxRetain: call(BUFFER, DEVICE),
  cuDevicePrimaryCtxRelease_v2: call(DEVICE),
  cuDevicePrimaryCtxReset_v2: call(DEVICE),
  cuCtxSetCurrent: call(CONTEXT),
  cuCtxSynchronize: call(),

  cuMemGetInfo_v2: call(BUFFER, BUFFER),
  cuMemAlloc_v2: call(BUFFER, SIZE),
  cuMemFree_v2: call(DEVICE_POINTER),
  cuMemHostAlloc: call(BUFFER, SIZE, "u32"),
  cuMemHostGetDevicePointer_v2: call(BUFFER, HOST_POINTER, "u32"),
  cuMemFreeHost: call(HOST_POINTER),
  cuMemcpyHtoD_v2: call(DEVICE_POINTER, BUFFER, SIZE),
  cuMemcpyDtoH_v2: call(BUFFER, DEVICE_POINTER, SIZE),
  cuMemcpyHtoDAsync_v2: call(DEVICE_POINTER, HOST_POINTER, SIZE, STREAM),
  cuMemcpyDtoHAsync_v2: call(HOST_POINTER, DEVICE_POINTER, SIZE, STREAM),
  cuMemcpyDtoDAsync_v2: call(DEVICE_POINTER, DEVICE_POINTER, SIZE, STREAM),
  cuMemsetD8Async: call(DEVICE_POINTER, "u8", SIZE, STREAM),

  cuModuleLoadDataEx: call(BUFFER, BUFFER, "u32", BUFFER, BUFFER),
  cuModuleUnload: call(MODULE),
  cuModuleGetFunction: call(BUFFER, MODULE, BUFFER),
  cuFuncSetAttribute: call(FUNCTION, "i32", "i32"),
  /** Of CUDA 12.4. */
  cuFuncGetParamInfo: { ...call(FUNCTION, SIZE, BUFFER, BUFFER), optional: true },
  cuLaunchKernel: call(
    FUNCTION,
    "u32", // grid
    "u32",
    "u32",
    "u32", // block
    "u32",
    "u32",
    "u32", // dynamic shared memory
    STREAM,
    BUFFER,
    BUFFER,
  ),

  cuStreamCreate: call(BUFFER, "u32"),
  cuStreamDestroy_v2: call(STREAM),
  cuStreamSynchronize: call(STREAM),
  cuStreamQuery: call(STREAM),
  cuStreamWaitEvent: call(STREAM, EVENT, "u32"),
  cuLaunchHostFunc: call(STREAM, "pointer", "pointer"),
  cuStreamBeginCapture_v2: call(STREAM, "i32"),
  cuStreamEndCapture: call(STREAM, BUFFER),
  cuGraphInstantiateWithFlags: call(BUFFER, GRAPH, SIZE),
  cuGraphLaunch: call(GRAPH_EXEC, STREAM),
  cuGraphDestroy: call(GRAPH),
  cuGraphExecDestroy: call(GRAPH_EXEC),

  cuEventCreate: call(BUFFER, "u32"),
  cuEventDestroy_v2: call(EVENT),
  cuEventRecord: call(EVENT, STREAM),
  cuEventSynchronize: call(EVENT),
  cuEventElapsedTime: call(BUFFER, EVENT, EVENT),
} as const;

/** Addresses of functions, for our native library to call on a thread of its own. */
export const addresses = {
  setCurrent: { name: "cuCtxSetCurrent", type: "pointer" },
  synchronize: { name: "cuStreamSynchronize", type: "pointer" },
} as const;

export type CallName = keyof typeof symbols;

type Argument<T> = T extends "buffer" ? Uint8Array<ArrayBuffer> | null
  : T extends "pointer" ? Deno.PointerValue
  : T extends Word<infer V> ? V
  : number;
type ArgumentsOf<P extends readonly unknown[]> = { -readonly [I in keyof P]: Argument<P[I]> };
/** What a function of the table takes. */
export type Arguments<N extends CallName> = ArgumentsOf<typeof symbols[N]["parameters"]>;

/** Numbers of cuda.h. */
export const STATUS = {
  invalidValue: 1,
  outOfMemory: 2,
  noDevice: 100,
  invalidImage: 200,
  invalidContext: 201,
  invalidPtx: 218,
  unsupportedPtxVersion: 222,
  invalidHandle: 400,
  notFound: 500,
  notReady: 600,
  illegalAddress: 700,
  launchTimeout: 702,
  launchFailed: 719,
} as const;

/** Errors that a context keeps: every later call in it fails. */
export const STICKY: ReadonlySet<number> = new Set([
  214, // uncorrectable memory error
  220, // NVLink error
  226, // contained error
  STATUS.illegalAddress,
  STATUS.launchTimeout,
  709, // context destroyed
  710, // assertion
  714, // stack error
  715, // illegal instruction
  716, // misaligned address
  717, // address space
  718, // program counter
  STATUS.launchFailed,
]);

export const ATTRIBUTE = {
  multiprocessors: 16,
  capabilityMajor: 75,
  capabilityMinor: 76,
  /** Bytes of shared memory a block may have when its kernel asks for more than 48 KiB. */
  mostShared: 97,
} as const;
export const FUNCTION_MOST_DYNAMIC_SHARED = 8;
/** How a thread of the CPU waits in cuStreamSynchronize and the like. */
export const SCHEDULE = { auto: 0, spin: 1, yield: 2, blocking: 4 } as const;
export const HOST_ALLOC_PORTABLE = 1;
export const HOST_ALLOC_DEVICEMAP = 2;
export const EVENT_DISABLE_TIMING = 2;
export const STREAM_NON_BLOCKING = 1;
/** Only the capturing thread is kept from calls that cannot be captured. */
export const CAPTURE_THREAD_LOCAL = 1;
export const JIT = { errorLog: 5, errorLogBytes: 6 } as const;
