// Modules and launches. A module is the kernels' library, compiled for the host (kernel_table.h).
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "driver.h"

namespace sim {

namespace {

struct Function {
  const SimModule* module;
  const SimKernel* kernel;
  size_t max_shared = 48 * 1024;
};
struct Module {
  int file;  // of the image's bytes; its path names the library, so it stays open as long as that is loaded
  void* library;
  std::map<std::string, Function> functions;
};
auto& modules = *new std::set<Module*>;

Function* function_of(CUfunction handle) {
  auto* function = reinterpret_cast<Function*>(handle);
  for (Module* module : modules)
    for (auto& [name, owned] : module->functions)
      if (&owned == function) return function;
  return nullptr;
}

// An ELF library of this processor is loaded as it is; for any other image (PTX, a cubin) CUDA_SIM_KERNELS names the library
// that stands in for it.
Module load_library(const unsigned char* image) {
  constexpr int cuda_machine = 190;
  Elf64_Ehdr header{};
  const bool elf = memcmp(image, ELFMAG, SELFMAG) == 0;
  if (elf) memcpy(&header, image, sizeof header);
  if (!elf || header.e_machine == cuda_machine) {
    const char* path = getenv("CUDA_SIM_KERNELS");
    return {-1, path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr, {}};
  }
  const size_t size = header.e_shoff + size_t{header.e_shentsize} * header.e_shnum;
  const int file = memfd_create("kernels", MFD_CLOEXEC);
  if (file < 0 || write(file, image, size) != static_cast<ssize_t>(size)) return {file, nullptr, {}};
  return {file, dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL), {}};
}

void unload(const Module& module) {
  if (module.library) dlclose(module.library);
  if (module.file >= 0) close(module.file);
}

CUresult code_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::none: return CUDA_SUCCESS;
    case FaultKind::bad_address: return CUDA_ERROR_ILLEGAL_ADDRESS;
    case FaultKind::timeout: return CUDA_ERROR_LAUNCH_TIMEOUT;
    default: return CUDA_ERROR_LAUNCH_FAILED;
  }
}

CUresult launch(const Function& function, uint3 blocks, uint3 threads, size_t shared,
                const std::vector<std::vector<char>>& values) {
  std::vector<void*> pointers;
  for (const auto& value : values) pointers.push_back(const_cast<char*>(value.data()));
  const Fault fault = run_grid({function.module, function.kernel, pointers.data(), blocks, threads, shared});
  if (fault.kind != FaultKind::none && !getenv("CUDA_SIM_QUIET")) {
    Lock lock(mutex);
    const std::string nearby = fault.kind == FaultKind::bad_address ? describe(fault.address) : "";
    fprintf(stderr, "CUDA simulator: %s%s\n", fault.message.c_str(), nearby.c_str());
  }
  return code_of(fault.kind);
}

}  // namespace

void release_modules() {
  for (Module* module : modules) {
    unload(*module);
    delete module;
  }
  modules.clear();
}

}  // namespace sim

using namespace sim;

API cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned options, CUjit_option* names, void** values) {
  ENTER_UNCAPTURED;
  Module loaded = load_library(static_cast<const unsigned char*>(image));
  const auto* table = loaded.library ? static_cast<const SimModule*>(dlsym(loaded.library, "sim_module")) : nullptr;
  if (!table) {
    const char* reason = loaded.library ? "no sim_module in it" : dlerror();
    char* log = nullptr;
    size_t log_size = 0;
    for (unsigned i = 0; i < options; i++) {
      if (names[i] == CU_JIT_ERROR_LOG_BUFFER) log = static_cast<char*>(values[i]);
      if (names[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) log_size = reinterpret_cast<size_t>(values[i]);
    }
    if (log) snprintf(log, log_size, "no kernels for the image: %s", reason ? reason : "CUDA_SIM_KERNELS is not set");
    unload(loaded);
    return CUDA_ERROR_INVALID_IMAGE;
  }
  auto* made = new Module(std::move(loaded));
  for (size_t i = 0; i < table->source_count; i++) {
    const SimSource& source = table->sources[i];
    for (size_t k = 0; k < source.count; k++) made->functions[source.kernels[k].name] = {table, &source.kernels[k]};
  }
  modules.insert(made);
  *module = reinterpret_cast<CUmodule>(made);
  return CUDA_SUCCESS;
}
API cuModuleUnload(CUmodule handle) {
  ENTER_UNCAPTURED;
  auto* module = reinterpret_cast<Module*>(handle);
  if (!modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
  wait_for_all(lock);
  modules.erase(module);
  unload(*module);
  delete module;
  return CUDA_SUCCESS;
}
API cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
  ENTER;
  auto* module = reinterpret_cast<Module*>(handle);
  if (!modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
  const auto found = module->functions.find(name);
  if (found == module->functions.end()) return CUDA_ERROR_NOT_FOUND;
  *function = reinterpret_cast<CUfunction>(&found->second);
  return CUDA_SUCCESS;
}
API cuFuncGetParamInfo(CUfunction handle, size_t index, size_t* offset, size_t* size) {
  ENTER;
  const Function* function = function_of(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  if (index >= function->kernel->parameter_count) return CUDA_ERROR_INVALID_VALUE;
  size_t end = 0;
  for (size_t i = 0; i <= index; i++) {
    const auto [bytes, alignment] = function->kernel->parameters[i];
    *offset = (end + alignment - 1) / alignment * alignment;
    end = *offset + bytes;
  }
  if (size) *size = function->kernel->parameters[index].size;
  return CUDA_SUCCESS;
}
API cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  ENTER;
  Function* function = function_of(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
      static_cast<size_t>(value) > sim_max_dynamic_shared)
    return CUDA_ERROR_INVALID_VALUE;
  function->max_shared = static_cast<size_t>(value);
  return CUDA_SUCCESS;
}
API cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, CUstream stream, void** parameters, void** extra) {
  ENTER;
  const Function* function = function_of(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  const bool empty = !grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z;
  if (empty || grid_y > 65535 || grid_z > 65535 || uint64_t{block_x} * block_y * block_z > 1024 ||
      shared > function->max_shared || extra || (!parameters && function->kernel->parameter_count))
    return CUDA_ERROR_INVALID_VALUE;
  // A full queue makes the caller wait, as the driver's does.
  const Stream* queued = stream_of(stream);
  const auto most = static_cast<size_t>(setting("CUDA_SIM_QUEUE", 1024));
  if (queued && !queued->capture) changed.wait(lock, [&] { return queued->queue.size() < most || device_error; });
  // The values are taken now, as the driver does; a graph replays them.
  std::vector<std::vector<char>> values;
  for (size_t i = 0; i < function->kernel->parameter_count; i++) {
    const auto* value = static_cast<const char*>(parameters[i]);
    values.emplace_back(value, value + function->kernel->parameters[i].size);
  }
  return submit(stream_of(stream), [=, function = *function] {
    return launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, values);
  });
}
