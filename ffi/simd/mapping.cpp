// Files mapped read-only, and anonymous memory: see ffi/mapping.ts. Addresses cross the C ABI only into ffi/.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <system_error>

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr uint32_t HC_ABI_VERSION = 2;  // ffi/symbols.ts: ABI_VERSION
constexpr size_t MESSAGE_BYTES = 256;

void describe(char* message, int error) {
  // std::generic_category().message is the thread-safe strerror.
  const std::string text = std::generic_category().message(error);
  std::snprintf(message, MESSAGE_BYTES, "%s", text.c_str());
}

}  // namespace

HC_EXPORT uint32_t hc_abi_version() { return HC_ABI_VERSION; }

HC_EXPORT void* hc_map_file(const char* path, uint64_t* size, char* message) {
  message[0] = 0;
  *size = 0;
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    describe(message, errno);
    return nullptr;
  }
  struct stat status;
  void* address = nullptr;
  if (fstat(file, &status) != 0) {
    describe(message, errno);
  } else if (!S_ISREG(status.st_mode)) {
    std::snprintf(message, MESSAGE_BYTES, "%s", S_ISDIR(status.st_mode) ? "it is a folder" : "it is not a file");
  } else if (status.st_size > 0) {
    *size = static_cast<uint64_t>(status.st_size);
    address = mmap(nullptr, *size, PROT_READ, MAP_PRIVATE, file, 0);
    if (address == MAP_FAILED) {
      describe(message, errno);
      *size = 0;
      address = nullptr;
    } else {
      madvise(address, *size, MADV_WILLNEED);
    }
  }
  close(file);
  return address;
}

HC_EXPORT void* hc_allocate(uint64_t bytes) {
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  // No huge pages: a cache for a long context is touched here and there, and each touch would take 2 MiB.
  return address;
}

HC_EXPORT void hc_unmap(void* address, uint64_t bytes) { munmap(address, bytes); }
