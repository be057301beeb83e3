// Files mapped read-only, and anonymous memory: see ffi/mapping.ts. Addresses cross the C ABI only into ffi/.
//
// A page of a mapped file whose bytes are gone (the file was cut off, its disk failed) is a SIGBUS when it is touched,
// on whatever thread a kernel runs. The handler here finds the address among our mappings, names the file and ends the
// process; other addresses go to the handler that was there before.
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

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr uint32_t HC_ABI_VERSION = 2;  // ffi/symbols.ts: ABI_VERSION
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
    address = mmap(nullptr, *size, PROT_READ, MAP_PRIVATE, file, 0);
    if (address == MAP_FAILED) {
      describe(message, errno);
      *size = 0;
      address = nullptr;
    } else {
      madvise(address, *size, MADV_WILLNEED);
      remember(address, *size, path);
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

HC_EXPORT void hc_unmap(void* address, uint64_t bytes) {
  forget(address);
  munmap(address, bytes);
}
