// The table by which the simulator finds a module's kernels. The build writes it from the names in the sources; the
// parameters' types come from the functions themselves.
#pragma once
#include <cstddef>
#include <type_traits>
#include <utility>

struct SimParameter { size_t size, alignment; };
struct SimKernel {
  const char* name;
  void (*invoke)(void** parameters);
  size_t parameter_count;
  const SimParameter* parameters;
};
// The kernels of one source.
struct SimSource {
  const SimKernel* kernels;
  size_t count;
};
struct SimModule {
  const SimSource* sources;
  size_t source_count;
  void* (*dynamic_shared)();  // of this OS thread
  size_t dynamic_shared_size;
};
// The most of any device, and room behind it where a write past the end of the launch's shared memory is noticed.
constexpr size_t sim_max_dynamic_shared = 227 * 1024, sim_shared_tail = 1024;

template <auto> struct SimLauncher;
template <class... P, void (*kernel)(P...)> struct SimLauncher<kernel> {
  static_assert((std::is_trivially_copyable_v<P> && ...));
  static constexpr SimParameter parameters[] = {{sizeof(P), alignof(P)}..., {0, 1}};
  template <size_t... i> static void unpack([[maybe_unused]] void** values, std::index_sequence<i...>) {
    kernel(*static_cast<std::remove_cv_t<P>*>(values[i])...);
  }
  static void invoke(void** values) { unpack(values, std::index_sequence_for<P...>{}); }
  static constexpr SimKernel entry(const char* name) { return {name, invoke, sizeof...(P), parameters}; }
};
