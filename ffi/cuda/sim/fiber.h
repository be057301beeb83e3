// Stack switching: a switch saves the callee-saved registers of the running context on its stack and continues another
// context where that one left off. About 5 ns, where the C library's swapcontext makes two system calls.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

extern "C" void sim_switch_stack(void** save, void* load);

struct Stack {
  char* bottom;
  size_t size;
};

struct Context {
  void* top;

  // The first switch to it calls `entry`, which does not return.
  void start_on(const Stack& stack, void (*entry)()) {
    auto* at = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack.bottom + stack.size) & ~uintptr_t{15});
#if defined(__x86_64__)
    *--at = nullptr;  // entry's return address: backtraces end here
    *--at = reinterpret_cast<void*>(entry);
    at -= 6;
    memset(at, 0, 6 * sizeof *at);
#elif defined(__aarch64__)
    at -= 20;
    memset(at, 0, 20 * sizeof *at);
    at[11] = reinterpret_cast<void*>(entry);  // x30
#endif
    top = at;
  }
};
inline void switch_context(Context& from, const Context& to) { sim_switch_stack(&from.top, to.top); }
