// A 64-bit checksum at the speed of memory, to notice that bytes changed. Not cryptographic.
//
// Bytes are cut into chunks of 1 MiB, each chunk into blocks of 64 bytes (the last one padded with zeros), each block
// into 8 little-endian 64-bit words. A chunk keeps one state per word position, s[i] = i + 1 at first, and for every block
//   s[i] = rotate_left((s[i] ^ word[i]) * PRIME, 29),
// a bijection of the word: one changed word always changes the state. The chunk's value folds its states in order,
//   h = mix(h ^ s[i]), h = the chunk's length in bytes at first, mix as below,
// and the checksum folds the chunks' values the same way in order, with h = the number of bytes at first.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "packing_parallel.h"

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr uint64_t CHUNK = uint64_t{1} << 20, BLOCK = 64, PRIME = 0x9E3779B185EBCA87u;
constexpr int WORDS = 8;

// The finaliser of MurmurHash3.
uint64_t mix(uint64_t h) {
  h = (h ^ h >> 33) * 0xFF51AFD7ED558CCDu;
  h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53u;
  return h ^ h >> 33;
}

void absorb(uint64_t* states, const uint8_t* block) {
  uint64_t words[WORDS];
  std::memcpy(words, block, BLOCK);
  for (int i = 0; i < WORDS; i++) {
    const uint64_t x = (states[i] ^ words[i]) * PRIME;
    states[i] = x << 29 | x >> 35;
  }
}

uint64_t chunk_value(const uint8_t* bytes, uint64_t count) {
  uint64_t states[WORDS];
  for (int i = 0; i < WORDS; i++) states[i] = static_cast<uint64_t>(i) + 1;
  uint64_t at = 0;
  for (; at + BLOCK <= count; at += BLOCK) absorb(states, bytes + at);
  if (at < count) {
    uint8_t last[BLOCK] = {};
    std::memcpy(last, bytes + at, count - at);
    absorb(states, last);
  }
  uint64_t h = count;
  for (uint64_t state : states) h = mix(h ^ state);
  return h;
}

}  // namespace

HC_EXPORT uint64_t hc_checksum(const uint8_t* bytes, uint64_t count, int32_t threads) {
  // Waves of chunks, so that memory for their values is bounded and needs no allocation.
  constexpr int64_t WAVE = 256;
  uint64_t values[WAVE], h = count;
  for (uint64_t begin = 0; begin < count; begin += WAVE * CHUNK) {
    const int64_t chunks = static_cast<int64_t>(std::min<uint64_t>(WAVE, (count - begin + CHUNK - 1) / CHUNK));
    hc::parallel(threads, chunks, [&](int64_t i) {
      const uint64_t at = begin + static_cast<uint64_t>(i) * CHUNK;
      values[i] = chunk_value(bytes + at, std::min(CHUNK, count - at));
    });
    for (int64_t i = 0; i < chunks; i++) h = mix(h ^ values[i]);
  }
  return h;
}
