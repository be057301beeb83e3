// Initialisation, the one device, its primary context, and errors.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

namespace sim {

std::mutex& mutex = *new std::mutex;
std::condition_variable& changed = *new std::condition_variable;
CUresult device_error = CUDA_SUCCESS;

namespace {

bool initialised = false;
unsigned context_users = 0;  // of the primary context; 0: it does not exist
char context_tag;
thread_local CUcontext current_context = nullptr;

// CUDA_SIM_FAIL=<function>:<n>[:<CUresult>]: the nth call of the function from now on fails.
CUresult injected_failure(const char* function) {
  static std::string& seen = *new std::string;
  static long long left = 0;
  const char* wanted = getenv("CUDA_SIM_FAIL");
  if (!wanted) wanted = "";
  const char* colon = strchr(wanted, ':');
  const size_t length = colon ? static_cast<size_t>(colon - wanted) : 0;
  if (seen != wanted) {
    seen = wanted;
    left = colon ? atoll(colon + 1) : 0;
  }
  if (length == 0 || strlen(function) != length || strncmp(function, wanted, length) != 0 || --left != 0)
    return CUDA_SUCCESS;
  if (const char* code = strchr(colon + 1, ':')) return static_cast<CUresult>(atoi(code + 1));
  return strstr(function, "Alloc") ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_UNKNOWN;
}

struct ErrorText {
  CUresult code;
  const char *name, *text;
};
#define ERROR(code, text) {code, #code, text}
const ErrorText error_texts[] = {
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"),
    ERROR(CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE, "primary context is active"),
    ERROR(CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef ERROR
const ErrorText* find_error(CUresult code) {
  for (const ErrorText& error : error_texts)
    if (error.code == code) return &error;
  return nullptr;
}

// Bytes of shared memory that a block may opt in to (CUDA programming guide, "Technical Specifications per Compute
// Capability").
int most_shared(int capability) {
  switch (capability) {
    case 75: return 64 * 1024;
    case 80: case 87: return 163 * 1024;
    case 86: case 89: return 99 * 1024;
    default: return sim_max_dynamic_shared;
  }
}

// All that belongs to the context goes with it.
void destroy_context(Lock& lock) {
  context_users = 0;
  release_streams(lock);
  release_graphs();
  release_modules();
  release_memory();
  device_error = CUDA_SUCCESS;
}

}  // namespace

CUresult enter(const char* function) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (!current_context) return CUDA_ERROR_INVALID_CONTEXT;  // every OS thread has its own
  if (context_users == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  if (device_error) return device_error;
  return injected_failure(function);
}

}  // namespace sim

using namespace sim;

// Needs no context.
#define ENTER_UNBOUND                                          \
  Lock lock(sim::mutex);                                       \
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;         \
  if (const CUresult failure = injected_failure(__func__)) return failure

API cuInit(unsigned flags) {
  Lock lock(sim::mutex);
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult failure = injected_failure(__func__)) return failure;
  initialised = true;
  return CUDA_SUCCESS;
}
API cuDriverGetVersion(int* version) {
  *version = static_cast<int>(setting("CUDA_SIM_VERSION", 13000));
  return CUDA_SUCCESS;
}
API cuGetErrorName(CUresult code, const char** name) {
  const ErrorText* error = find_error(code);
  *name = error ? error->name : nullptr;
  return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
API cuGetErrorString(CUresult code, const char** text) {
  const ErrorText* error = find_error(code);
  *text = error ? error->text : nullptr;
  return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API cuDeviceGetCount(int* count) {
  ENTER_UNBOUND;
  *count = static_cast<int>(setting("CUDA_SIM_DEVICES", 1));
  return CUDA_SUCCESS;
}
API cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER_UNBOUND;
  *device = ordinal;
  return ordinal >= 0 && ordinal < setting("CUDA_SIM_DEVICES", 1) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int size, CUdevice) {
  ENTER_UNBOUND;
  snprintf(name, static_cast<size_t>(size), "CUDA simulator");
  return CUDA_SUCCESS;
}
API cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  ENTER_UNBOUND;
  *bytes = device_bytes_total();
  return CUDA_SUCCESS;
}
API cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  ENTER_UNBOUND;
  const int capability = static_cast<int>(setting("CUDA_SIM_CAPABILITY", 80));  // 75 for 7.5
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 * 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = most_shared(capability); break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = static_cast<int>(setting("CUDA_SIM_MULTIPROCESSORS", 4)); break;
    case CU_DEVICE_ATTRIBUTE_INTEGRATED: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = capability / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = capability % 10; break;
    default: return CUDA_ERROR_INVALID_VALUE;  // add what the program asks for
  }
  return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxSetFlags_v2(CUdevice, unsigned) {
  ENTER_UNBOUND;
  return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  ENTER_UNBOUND;
  context_users++;
  *context = reinterpret_cast<CUcontext>(&context_tag);
  return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(CUdevice) {
  ENTER_UNBOUND;
  if (context_users == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (context_users == 1) destroy_context(lock);
  else context_users--;
  return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxReset_v2(CUdevice) {
  ENTER_UNBOUND;
  destroy_context(lock);
  return CUDA_SUCCESS;
}
API cuCtxSetCurrent(CUcontext context) {
  ENTER_UNBOUND;
  current_context = context;
  return CUDA_SUCCESS;
}
API cuCtxGetCurrent(CUcontext* context) {
  ENTER_UNBOUND;
  *context = current_context;
  return CUDA_SUCCESS;
}
API cuCtxSynchronize() {
  ENTER_UNCAPTURED;
  wait_for_all(lock);
  return device_error;
}
