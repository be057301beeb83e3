// Shared memory: the thread-local segment of the kernels' library. A kernel finds it scribbled over, and must not
// write behind the dynamic part that its launch asked for.
#include <link.h>
#include <string.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "runner.h"

namespace sim {

void Runner::find_shared() {
  dynamic_ = static_cast<char*>(grid_->module->dynamic_shared());  // also makes the segment
  shared_ = nullptr;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto* self = static_cast<Runner*>(data);
        auto* start = static_cast<char*>(info->dlpi_tls_data);
        for (int i = 0; start && i < info->dlpi_phnum; i++) {
          const auto& segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_TLS || self->dynamic_ < start || self->dynamic_ >= start + segment.p_memsz) continue;
          self->shared_ = start;
          self->shared_size_ = segment.p_memsz;
          return 1;
        }
        return 0;
      },
      this);
}

// Before a grid: the static variables of all kernels of the library, of which nobody knows whose they are. Doing it before
// every block would cost more than most blocks do, and shows no more: the first block reads what was not written.
void Runner::prepare_static_shared() {
  if (!shared_) return;
  char* const dynamic_end = dynamic_ + grid_->module->dynamic_shared_size;
  memset(shared_, scribble, static_cast<size_t>(dynamic_ - shared_));
  memset(dynamic_end, scribble, static_cast<size_t>(shared_ + shared_size_ - dynamic_end));
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(dynamic_ + grid_->shared_bytes,
                            static_cast<size_t>(dynamic_end - dynamic_) - grid_->shared_bytes);
#else
  memset(dynamic_ + grid_->shared_bytes, scribble, sim_shared_tail);
#endif
}

// Before a block: what its launch asked for.
void Runner::prepare_dynamic_shared() {
  if (shared_) memset(dynamic_, scribble, grid_->shared_bytes);
}

void Runner::check_shared() {
#ifndef __SANITIZE_ADDRESS__
  const char* tail = dynamic_ + grid_->shared_bytes;
  for (size_t i = 0; shared_ && i < sim_shared_tail; i++) {
    if (static_cast<unsigned char>(tail[i]) != scribble)
      fail(FaultKind::misuse, "wrote dynamic shared memory " + std::to_string(i) + " bytes past its end");
  }
#endif
}

// The segment outlives neither the thread nor the module; who has its memory then must not find it poisoned.
void Runner::release_shared() {
#ifdef __SANITIZE_ADDRESS__
  if (shared_) ASAN_UNPOISON_MEMORY_REGION(dynamic_, grid_->module->dynamic_shared_size);
#endif
}

}  // namespace sim
