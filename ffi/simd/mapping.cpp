// Files mapped read-only, and anonymous memory: see ffi/mapping.ts. Addresses cross the C ABI only into ffi/.
//
// A page of a mapped file whose bytes are gone (the file was cut off, its disk failed) is a SIGBUS when it is touched,
// on whatever thread a kernel runs. The handler here finds the address among our mappings, names the file and ends the
// process; other addresses go to the handler that was there before.
//
// Before and after every mapping lies a page that nobody may touch, so what reaches outside ends there and not in a
// neighbour. For the address sanitizer, which knows nothing of mappings, the rest of the last page is forbidden too.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>
#include <system_error>

#include "huge_pages.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using hc::HUGE_PAGE;
using hc::prefer_huge_pages;

constexpr uint32_t HC_ABI_VERSION = 7;  // ffi/symbols.ts: ABI_VERSION
constexpr size_t MESSAGE_BYTES = 256;

void describe(char* message, int error) {
  // std::generic_category().message is the thread-safe strerror.
  const std::string text = std::generic_category().message(error);
  std::snprintf(message, MESSAGE_BYTES, "%s", text.c_str());
}

// What the handler reads: fixed, so that it needs neither memory nor locks. `begin` is written last and read first.
struct Mapped {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  char name[512];
};
Mapped mapped[1024];  // mappings beyond work as well, only without the message
std::mutex mapped_lock;
struct sigaction previous_handler;

constexpr int EXIT_ENVIRONMENT = 6;  // compiler/errors.ts

void write_text(const char* text) {
  // The process ends either way.
  if (write(STDERR_FILENO, text, std::strlen(text)) < 0) return;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  // A signal that another process sent has no address.
  for (const Mapped& m : mapped) {
    const uintptr_t begin = m.begin.load(std::memory_order_acquire);
    if (info->si_code <= 0 || begin == 0 || address < begin || address >= m.end.load(std::memory_order_relaxed)) continue;
    write_text("error: ");
    write_text(m.name);
    write_text(" was truncated or its disk failed while it was in use\n");
    _exit(EXIT_ENVIRONMENT);
  }
  if (previous_handler.sa_flags & SA_SIGINFO) {
    previous_handler.sa_sigaction(signal, info, context);
  } else if (previous_handler.sa_handler != SIG_DFL && previous_handler.sa_handler != SIG_IGN) {
    previous_handler.sa_handler(signal);
  } else {
    // Ends the process when this handler returns, as if it had not been there.
    ::signal(signal, SIG_DFL);
    raise(signal);
  }
}

void remember(const void* address, uint64_t bytes, const char* path) {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_handler);
  });
  const std::lock_guard<std::mutex> guard(mapped_lock);
  for (Mapped& m : mapped) {
    if (m.begin.load(std::memory_order_relaxed) != 0) continue;
    // The end of a long path tells more; what a terminal could take for a command is not written to one.
    const size_t length = std::strlen(path), most = sizeof m.name - 1;
    const char* tail = path + (length > most ? length - most : 0);
    size_t n = 0;
    for (; tail[n] != 0; n++) m.name[n] = tail[n] >= ' ' && tail[n] <= '~' ? tail[n] : '?';
    m.name[n] = 0;
    const auto begin = reinterpret_cast<uintptr_t>(address);
    m.end.store(begin + bytes, std::memory_order_relaxed);
    m.begin.store(begin, std::memory_order_release);
    return;
  }
}

void forget(const void* address) {
  const std::lock_guard<std::mutex> guard(mapped_lock);
  for (Mapped& m : mapped) {
    if (m.begin.load(std::memory_order_relaxed) == reinterpret_cast<uintptr_t>(address)) m.begin.store(0);
  }
}

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t up_to(size_t multiple, uint64_t bytes) { return (bytes + multiple - 1) / multiple * multiple; }

// Address space for `bytes` between two forbidden pages, forbidden itself, from a multiple of `alignment` on; null when there
// is none.
char* reserve(uint64_t bytes, size_t alignment) {
  const size_t page = page_bytes(), used = up_to(page, bytes) + 2 * page;
  const size_t spare = alignment > page ? alignment : 0;
  void* start = mmap(nullptr, used + spare, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  char* const first = static_cast<char*>(start);
  const auto address = reinterpret_cast<uintptr_t>(first) + page;
  const size_t before = (alignment - address % alignment) % alignment;
  if (before > 0) munmap(first, before);
  if (spare > before) munmap(first + before + used, spare - before);
  return first + before + page;
}

// Kernels may read to the end of the last 64 bytes, no further.
void fence(char* address, uint64_t bytes) {
  const size_t used = up_to(64, bytes);
  ASAN_POISON_MEMORY_REGION(address + used, up_to(page_bytes(), bytes) - used);
}

void release(char* address, uint64_t bytes) {
  const size_t page = page_bytes(), whole = up_to(page, bytes);
  ASAN_UNPOISON_MEMORY_REGION(address, whole);
  munmap(address - page, whole + 2 * page);
}

}  // namespace

HC_EXPORT uint32_t hc_abi_version() { return HC_ABI_VERSION; }

HC_EXPORT void* hc_map_file(const char* path, uint64_t* size, char* message) {
  message[0] = 0;
  *size = 0;
  // Without O_NONBLOCK, opening a pipe waits for its writer.
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    describe(message, errno);
    return nullptr;
  }
  struct stat status;
  void* address = nullptr;
  if (fstat(file, &status) != 0) {
    describe(message, errno);
  } else if (!S_ISREG(status.st_mode)) {
    std::snprintf(message, MESSAGE_BYTES, "%s",
                  S_ISDIR(status.st_mode) ? "it is a folder" : "it is a pipe or a device, not a file");
  } else if (status.st_size > 0) {
    *size = static_cast<uint64_t>(status.st_size);
    char* place = reserve(*size, *size >= HUGE_PAGE ? HUGE_PAGE : page_bytes());
    address = place == nullptr ? MAP_FAILED : mmap(place, *size, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0);
    if (address == MAP_FAILED) {
      describe(message, errno);
      if (place != nullptr) release(place, *size);
      *size = 0;
      address = nullptr;
    } else {
      prefer_huge_pages(address, *size);
      madvise(address, *size, MADV_WILLNEED);
      fence(place, *size);
      remember(address, *size, path);
    }
  }
  close(file);
  return address;
}

HC_EXPORT void* hc_allocate(uint64_t bytes, int32_t huge) {
  char* address = reserve(bytes, huge ? HUGE_PAGE : page_bytes());
  if (address == nullptr) return nullptr;
  if (mprotect(address, up_to(page_bytes(), bytes), PROT_READ | PROT_WRITE) != 0) {
    release(address, bytes);
    return nullptr;
  }
  if (huge) prefer_huge_pages(address, bytes);
  fence(address, bytes);
  return address;
}

HC_EXPORT void hc_unmap(void* address, uint64_t bytes) {
  forget(address);
  release(static_cast<char*>(address), bytes);
}
