// Memory of the device and pinned memory of the host: every allocation lies between pages without access, so that
// what leaves it faults. Freed addresses are never used again.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "driver.h"
#include "runner.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace sim {

namespace {

auto& allocations = *new std::map<uintptr_t, Allocation>;
size_t device_bytes_used = 0;

// Address space before and behind every allocation, without memory: what is off by a row meets it too.
constexpr size_t guard_size = 1 << 20;

// The driver aligns to 256; at 16 an overrun by a few bytes meets the guard.
uintptr_t allocate(size_t size, Kind kind) {
  if (kind == Kind::device && size > device_bytes_total() - std::min(device_bytes_used, device_bytes_total())) return 0;
  const auto align = static_cast<size_t>(setting("CUDA_SIM_ALIGN", 16));
  if (size > SIZE_MAX / 2) return 0;
  const size_t used = (size + align - 1) / align * align;
  Allocation made{size, kind};
#ifdef __SANITIZE_ADDRESS__
  const auto start = reinterpret_cast<uintptr_t>(aligned_alloc(align, used));
  if (start == 0) return 0;
  memset(reinterpret_cast<void*>(start), scribble, used);
  ASAN_POISON_MEMORY_REGION(reinterpret_cast<char*>(start) + size, used - size);
#else
  const size_t body = (used + page_size - 1) / page_size * page_size;
  made.map_size = body + 2 * guard_size;
  void* map = mmap(nullptr, made.map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return 0;
  made.map = static_cast<char*>(map);
  mprotect(made.map + guard_size, body, PROT_READ | PROT_WRITE);
  memset(made.map + guard_size, scribble, body);
  const auto start = reinterpret_cast<uintptr_t>(made.map) + guard_size + body - used;
#endif
  allocations[start] = made;
  if (kind == Kind::device) device_bytes_used += size;
  return start;
}

void release(std::map<uintptr_t, Allocation>::iterator at) {
  const auto [start, freed] = *at;
  allocations.erase(at);
  if (freed.kind == Kind::device) device_bytes_used -= freed.size;
  if (freed.map) {  // the addresses stay taken: a late access faults
    mmap(freed.map, freed.map_size, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  } else {
    free(reinterpret_cast<void*>(start));
  }
}

CUresult release_one(uintptr_t start, Kind kind) {
  const auto found = allocations.find(start);
  if (found == allocations.end() || found->second.kind != kind) return CUDA_ERROR_INVALID_VALUE;
  release(found);
  return CUDA_SUCCESS;
}

bool on_device(CUdeviceptr address, size_t size) {
  const Allocation* found = find_allocation(address, size);
  return found && found->kind == Kind::device;
}

enum class Direction { to_device, from_device };

CUresult copy(Lock& lock, Direction direction, CUdeviceptr device, const void* host, size_t size, CUstream handle, bool async) {
  if (size == 0) return CUDA_SUCCESS;
  if (!on_device(device, size)) return CUDA_ERROR_INVALID_VALUE;
  const auto host_address = reinterpret_cast<uintptr_t>(host);
  const Allocation* pinned = find_allocation(host_address, size);
  const Allocation* begun = find_allocation(host_address, 1);
  if (begun && (begun->kind == Kind::device || !pinned)) return CUDA_ERROR_INVALID_VALUE;
  Stream* stream = stream_of(handle);
  void* on_device_side = reinterpret_cast<void*>(device);
  void* to = direction == Direction::to_device ? on_device_side : const_cast<void*>(host);
  const void* from = direction == Direction::to_device ? host : on_device_side;
  if (const CUresult failure = submit(stream, [=] { return memcpy(to, from, size), CUDA_SUCCESS; })) return failure;
  if (stream->capture || (async && pinned)) return CUDA_SUCCESS;
  wait_for(lock, SignalRef(stream->last));  // pageable memory makes a copy synchronous
  return device_error;
}

}  // namespace

size_t device_bytes_total() { return static_cast<size_t>(setting("CUDA_SIM_MEMORY", 8ll << 30)); }

const Allocation* find_allocation(uintptr_t address, size_t size) {
  const auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return nullptr;
  const auto& [start, found] = *std::prev(next);
  const size_t offset = address - start;
  return offset < found.size && size <= found.size - offset ? &found : nullptr;
}

std::string describe(uintptr_t address) {
  std::string text;
  const auto add = [&](const char* relation, uintptr_t distance, uintptr_t start, size_t size) {
    if (distance > 64 * guard_size) return;
    char line[128];
    snprintf(line, sizeof line, "; %zu bytes %s %zu bytes at %#zx", size_t{distance}, relation, size, size_t{start});
    text += line;
  };
  const auto next = allocations.upper_bound(address);
  if (next != allocations.begin()) {
    const auto& [start, before] = *std::prev(next);
    add("past the start of the", address - start, start, before.size);
  }
  if (next != allocations.end()) add("before the", next->first - address, next->first, next->second.size);
  return text;
}

void release_memory() {
  while (!allocations.empty()) release(allocations.begin());
}

}  // namespace sim

using namespace sim;

API cuMemGetInfo_v2(size_t* free, size_t* total) {
  ENTER;
  *total = device_bytes_total();
  *free = *total - std::min(*total, device_bytes_used);
  return CUDA_SUCCESS;
}
API cuMemAlloc_v2(CUdeviceptr* pointer, size_t size) {
  ENTER_UNCAPTURED;
  if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  *pointer = allocate(size, Kind::device);
  return *pointer ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
API cuMemFree_v2(CUdeviceptr pointer) {
  ENTER_UNCAPTURED;
  if (!pointer) return CUDA_SUCCESS;
  wait_for_all(lock);  // as the driver does
  return release_one(pointer, Kind::device);
}
API cuMemHostAlloc(void** pointer, size_t size, unsigned) {
  ENTER_UNCAPTURED;
  if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  *pointer = reinterpret_cast<void*>(allocate(size, Kind::pinned));
  return *pointer ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
API cuMemFreeHost(void* pointer) {
  ENTER_UNCAPTURED;
  wait_for_all(lock);
  return release_one(reinterpret_cast<uintptr_t>(pointer), Kind::pinned);
}
API cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* pointer, unsigned) {
  ENTER;
  *device = reinterpret_cast<CUdeviceptr>(pointer);
  const Allocation* found = find_allocation(*device, 1);
  return found && found->kind == Kind::pinned ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t size, CUstream stream) {
  ENTER;
  return copy(lock, Direction::to_device, to, from, size, stream, true);
}
API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t size, CUstream stream) {
  ENTER;
  return copy(lock, Direction::from_device, from, to, size, stream, true);
}
API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t size) {
  ENTER;
  return copy(lock, Direction::to_device, to, from, size, nullptr, false);
}
API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t size) {
  ENTER;
  return copy(lock, Direction::from_device, from, to, size, nullptr, false);
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
  ENTER;
  if (!on_device(to, size) || !on_device(from, size)) return CUDA_ERROR_INVALID_VALUE;
  return submit(stream_of(stream), [=] {
    return memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size), CUDA_SUCCESS;
  });
}
API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream stream) {
  ENTER;
  if (!find_allocation(to, size)) return CUDA_ERROR_INVALID_VALUE;
  return submit(stream_of(stream), [=] { return memset(reinterpret_cast<void*>(to), value, size), CUDA_SUCCESS; });
}
API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t size) {
  ENTER;
  if (!find_allocation(to, size)) return CUDA_ERROR_INVALID_VALUE;
  return submit(stream_of(nullptr), [=] { return memset(reinterpret_cast<void*>(to), value, size), CUDA_SUCCESS; });
}
