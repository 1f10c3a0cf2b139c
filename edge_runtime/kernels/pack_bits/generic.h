// Eight bytes are squeezed together in one 64-bit word; wider values pass through a word that fills up. All targets are
// little-endian, so a word's first byte is its lowest.
#ifndef HEDGEROW_PACK_BITS_GENERIC_H_
#define HEDGEROW_PACK_BITS_GENERIC_H_

#include <cstring>

#include "pack_bits/pack_bits.h"

namespace hedgerow {
namespace {

inline uint64_t LoadWord(const uint8_t* p, size_t bytes) {
  uint64_t word = 0;
  std::memcpy(&word, p, bytes);
  return word;
}

// Eight values in eight bytes, of `width` bits each, side by side: neighbours move together, then pairs, then fours.
inline uint64_t Squeeze(uint64_t x, unsigned width) {
  x &= 0x0101010101010101u * ((1u << width) - 1);
  x = (x & 0x00ff00ff00ff00ffu) | (x & 0xff00ff00ff00ff00u) >> (8 - width);
  x = (x & 0x0000ffff0000ffffu) | (x & 0xffff0000ffff0000u) >> (16 - 2 * width);
  return (x & 0x00000000ffffffffu) | (x & 0xffffffff00000000u) >> (32 - 4 * width);
}

inline uint64_t Spread(uint64_t x, unsigned width) {
  const uint64_t one = (1u << width) - 1, two = (1u << 2 * width) - 1, four = (uint64_t{1} << 4 * width) - 1;
  x = (x & four) | (x >> 4 * width & four) << 32;
  x = (x & two * 0x0000000100000001u) | (x & (two << 2 * width) * 0x0000000100000001u) << (16 - 2 * width);
  return (x & one * 0x0001000100010001u) | (x & (one << width) * 0x0001000100010001u) << (8 - width);
}

// The width is known to the compiler, so that a copy of `width` bytes is a move or two.
template <unsigned kWidth>
void PackBytesOf(size_t n, const uint8_t* values, uint8_t* bytes) {
  for (; n >= 8; n -= 8, values += 8, bytes += kWidth) {
    const uint64_t word = Squeeze(LoadWord(values, 8), kWidth);
    std::memcpy(bytes, &word, kWidth);
  }
  const uint64_t word = Squeeze(LoadWord(values, n), kWidth);
  std::memcpy(bytes, &word, PackedBytes(n, kWidth));
}

template <unsigned kWidth>
void UnpackBytesOf(size_t n, const uint8_t* bytes, uint8_t* values) {
  // Eight bytes are read where there are as many: Spread drops what is not its own, and a short load is a slow one.
  size_t left = PackedBytes(n, kWidth);
  for (; n >= 8; n -= 8, values += 8, bytes += kWidth, left -= kWidth) {
    const uint64_t word = Spread(left >= 8 ? LoadWord(bytes, 8) : LoadWord(bytes, kWidth), kWidth);
    std::memcpy(values, &word, 8);
  }
  const uint64_t word = Spread(LoadWord(bytes, left), kWidth);
  std::memcpy(values, &word, n);
}

void PackU8(size_t n, unsigned width, const uint8_t* values, uint8_t* bytes) {
  constexpr void (*kByWidth[])(size_t, const uint8_t*, uint8_t*) = {
      PackBytesOf<1>, PackBytesOf<2>, PackBytesOf<3>, PackBytesOf<4>,
      PackBytesOf<5>, PackBytesOf<6>, PackBytesOf<7>, PackBytesOf<8>};
  if (n > 0) kByWidth[width - 1](n, values, bytes);
}

void UnpackU8(size_t n, unsigned width, const uint8_t* bytes, uint8_t* values) {
  constexpr void (*kByWidth[])(size_t, const uint8_t*, uint8_t*) = {
      UnpackBytesOf<1>, UnpackBytesOf<2>, UnpackBytesOf<3>, UnpackBytesOf<4>,
      UnpackBytesOf<5>, UnpackBytesOf<6>, UnpackBytesOf<7>, UnpackBytesOf<8>};
  if (n > 0) kByWidth[width - 1](n, bytes, values);
}

void PackU32(size_t n, unsigned width, const uint32_t* values, uint8_t* bytes) {
  const uint64_t mask = (uint64_t{1} << width) - 1;
  uint64_t word = 0;
  unsigned filled = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint64_t value = values[i] & mask;
    word |= value << filled;
    filled += width;
    if (filled >= 64) {
      std::memcpy(bytes, &word, 8);
      bytes += 8;
      filled -= 64;
      word = value >> (width - filled);  // what did not fit; width - filled is 1 to 32
    }
  }
  if (filled > 0) std::memcpy(bytes, &word, (filled + 7) / 8);
}

void UnpackU32(size_t n, unsigned width, const uint8_t* bytes, uint32_t* values) {
  const uint64_t mask = (uint64_t{1} << width) - 1;
  const size_t total = PackedBytes(n, width);
  // A value starts within a byte and ends at most 39 bits on, so one word holds it.
  size_t at = 0;
  unsigned bit = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint64_t word = total - at >= 8 ? LoadWord(bytes + at, 8) : LoadWord(bytes + at, total - at);
    values[i] = static_cast<uint32_t>(word >> bit & mask);
    bit += width;
    at += bit / 8;
    bit %= 8;
  }
}

constexpr PackBitsKernels kPackBits = {PackU8, UnpackU8, PackU32, UnpackU32};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_PACK_BITS_GENERIC_H_
