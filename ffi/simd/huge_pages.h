// Pages of 2 MiB: one entry of the processor's tables for all of it, so that rows that lie far apart cost no page walks.
#pragma once
#include <sys/mman.h>

#include <cstddef>

namespace hc {

// Where the file system keeps a file's pages in units of this size (ext4, xfs and btrfs of a recent Linux, for files written in
// large pieces), a mapping at such an address has them, too.
constexpr size_t HUGE_PAGE = size_t{1} << 21;

inline void prefer_huge_pages([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  madvise(address, bytes, MADV_HUGEPAGE);
#endif
}

}  // namespace hc
