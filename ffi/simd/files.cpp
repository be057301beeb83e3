// What the runtime's own file system functions lack: locks that end with their process, and exchanging two folders at
// once. See ffi/files.ts.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>

#ifdef __linux__
#include <sys/syscall.h>
#endif

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

// With `create`, makes the file, which must not be there, and waits for its lock; it is then locked wherever the file
// system has locks. Otherwise the file must be there and its lock free. Returns a descriptor, or -errno.
HC_EXPORT int32_t hc_lock_file(const char* path, int32_t create) {
  const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (create ? O_CREAT | O_EXCL : 0);
  const int file = open(path, flags, 0600);
  if (file < 0) return -errno;
  int result;
  do {
    result = flock(file, create ? LOCK_EX : LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result == 0 || create) return file;
  const int error = errno;
  close(file);
  return -error;
}

// Waits for the lock of a folder. Returns a descriptor, or -errno.
HC_EXPORT int32_t hc_lock_folder(const char* path) {
  const int folder = open(path, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  if (folder < 0) return -errno;
  while (flock(folder, LOCK_EX) != 0) {
    if (errno == EINTR) continue;
    const int error = errno;
    close(folder);
    return -error;
  }
  return folder;
}

HC_EXPORT void hc_unlock_file(int32_t file) { close(file); }

// Exchanges two paths of one file system. Returns 0, or errno: ENOSYS or EINVAL where there is no such operation.
HC_EXPORT int32_t hc_exchange(const char* a, const char* b) {
#if defined(__linux__) && defined(SYS_renameat2)
  constexpr unsigned EXCHANGE = 2;  // RENAME_EXCHANGE, which older headers lack
  return syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, EXCHANGE) == 0 ? 0 : errno;
#elif defined(__APPLE__)
  return renamex_np(a, b, RENAME_SWAP) == 0 ? 0 : errno;
#else
  (void)a;
  (void)b;
  return ENOSYS;
#endif
}
