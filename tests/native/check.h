// What the native tests share: expectations, reproducible numbers and a digest of every result. A test program is
// compiled for one instruction set; run.sh compares the digests, which must be equal.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace check {

inline int failures = 0;
inline uint64_t digest = 0xCBF29CE484222325;

inline void expect(bool ok, const char* what, double found = 0, double expected = 0) {
  if (ok) return;
  if (failures++ < 20) std::fprintf(stderr, "FAIL %s: found %.9g, expected %.9g\n", what, found, expected);
}

// |found - expected| <= bound; NaN and infinities must match.
inline void near(double found, double expected, double bound, const char* what) {
  bool ok = std::isnan(expected)   ? std::isnan(found)
            : std::isinf(expected) ? found == expected
                                   : std::fabs(found - expected) <= bound;
  expect(ok, what, found, expected);
}

inline void mix(const void* bytes, size_t n) {
  for (size_t i = 0; i < n; i++) digest = (digest ^ static_cast<const uint8_t*>(bytes)[i]) * 0x100000001B3;
}
template <class T> void mix(const std::vector<T>& values) { mix(values.data(), values.size() * sizeof(T)); }
// The sign and payload of a NaN are not part of the result.
template <> inline void mix(const std::vector<float>& values) {
  for (float value : values) {
    if (value != value) value = NAN;
    mix(&value, sizeof value);
  }
}

inline uint64_t state = 1;
inline uint32_t random32() {  // splitmix64
  uint64_t z = (state += 0x9E3779B97F4A7C15);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 16);
}
inline float uniform(float low, float high) {
  return low + (high - low) * static_cast<float>(random32() >> 8) * 0x1p-24f;
}
inline std::vector<float> uniforms(size_t n, float low = -1, float high = 1) {
  std::vector<float> values(n);
  for (float& value : values) value = uniform(low, high);
  return values;
}
inline int finish(const char* name) {
  if (failures) std::fprintf(stderr, "%s: %d failures\n", name, failures);
  std::printf("%016llx\n", static_cast<unsigned long long>(digest));
  return failures ? 1 : 0;
}

}  // namespace check
