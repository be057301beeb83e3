#include "isa.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace hc {
namespace {

struct Variant {
  const char* name;
  const Kernels& (*kernels)();
  bool (*supported)();
};

// Best first.
const Variant VARIANTS[] = {
#if defined(__x86_64__)
    {"avx512vnni", avx512vnni::kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
     }},
    {"avx512", avx512::kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl");
     }},
    {"avx2", avx2::kernels,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }},
#elif defined(__aarch64__)
    {"neon", neon::kernels, [] { return true; }},
#endif
    {"scalar", scalar::kernels, [] { return true; }},
};

char error[256] = "";

const Kernels* choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const char* forced = std::getenv("HCINFER_ISA");
  if (forced && *forced == '\0') forced = nullptr;
  for (const Variant& variant : VARIANTS) {
    if (forced ? std::strcmp(forced, variant.name) == 0 && variant.supported() : variant.supported()) return &variant.kernels();
  }
  int written = std::snprintf(error, sizeof error, "HCINFER_ISA=%s is not available; this machine runs", forced ? forced : "");
  for (const Variant& variant : VARIANTS) {
    if (variant.supported()) written += std::snprintf(error + written, sizeof error - static_cast<size_t>(written), " %s", variant.name);
  }
  return nullptr;
}

}  // namespace

const Kernels* active_kernels() {
  static const Kernels* const chosen = choose();
  return chosen;
}

const char* isa_error() {
  active_kernels();
  return error;
}

}  // namespace hc
