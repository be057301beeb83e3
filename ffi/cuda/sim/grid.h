// Runs one kernel's grid on the calling OS thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "kernel_table.h"
#include "vectors.h"

namespace sim {

struct Grid {
  const SimModule* module;
  const SimKernel* kernel;
  void** parameters;
  uint3 blocks, threads;
  size_t shared_bytes;
};

enum class FaultKind { none, bad_address, trap, timeout, misuse };
struct Fault {
  FaultKind kind = FaultKind::none;
  std::string message;
  uintptr_t address = 0;  // of bad_address
};

Fault run_grid(const Grid& grid);

// A number of the environment; 0x for hexadecimal.
long long setting(const char* name, long long otherwise);

}  // namespace sim
