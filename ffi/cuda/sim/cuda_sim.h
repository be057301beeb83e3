// The subset of CUDA C++ that kernel sources may use, so that the host's compiler can build them for the simulator.
//
// A block runs on one OS thread, and its CUDA threads are fibers of that thread: a thread-local variable has exactly the
// scope of a shared one. What a running block offers (barriers, warp operations) is in warp.h; block.cpp does it.
#pragma once
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ thread_local
#define __restrict__ __restrict
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#include "vectors.h"
#include "warp.h"
#include "arithmetic.h"
#include "atomics.h"
#include "half.h"
#include "kernel_table.h"
