// Small unsigned integers as a dense stream of bits, little-endian: value i is bits [i * width, (i + 1) * width) of the
// stream, and bit j of the stream is bit j % 8 of byte j / 8. The bits that fill up the last byte are 0.
#ifndef HEDGEROW_PACK_BITS_H_
#define HEDGEROW_PACK_BITS_H_

#include <cstddef>
#include <cstdint>

namespace hedgerow {

namespace {

// Bytes of n values of 1 <= width <= 32 bits: what `pack` writes and `unpack` reads, to the byte.
constexpr size_t PackedBytes(size_t n, unsigned width) { return n / 8 * width + (n % 8 * width + 7) / 8; }

}  // namespace

struct PackBitsKernels {
  // Of each value the low `width` bits are kept. bytes and values must not overlap.
  void (*pack_u8)(size_t n, unsigned width, const uint8_t* values, uint8_t* bytes);  // width <= 8
  void (*unpack_u8)(size_t n, unsigned width, const uint8_t* bytes, uint8_t* values);
  void (*pack_u32)(size_t n, unsigned width, const uint32_t* values, uint8_t* bytes);  // width <= 32
  void (*unpack_u32)(size_t n, unsigned width, const uint8_t* bytes, uint32_t* values);
};

}  // namespace hedgerow

#endif  // HEDGEROW_PACK_BITS_H_
