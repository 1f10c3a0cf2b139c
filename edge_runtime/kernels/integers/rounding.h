// From a real number to a signed byte.
#ifndef HEDGEROW_INTEGERS_ROUNDING_H_
#define HEDGEROW_INTEGERS_ROUNDING_H_

#include <cstdint>
#include <cstring>

#include "isa/index.h"

namespace hedgerow {
namespace {

// clamp(round(t) + zero, low, high), ties to even; NaN becomes low. The bounds are whole numbers, so it is the same to
// clamp first, to `low - zero` and `high - zero`.
struct Rounding {
  Rounding(int64_t zero_point, int64_t lowest, int64_t highest)
      : zero(static_cast<int32_t>(zero_point)), low(static_cast<float>(lowest - zero_point)),
        high(static_cast<float>(highest - zero_point)) {}

  // Adding 1.5 * 2^23 leaves no bits for a fraction, so the addition rounds, to even; the integer then stands in the
  // low bits.
  HEDGEROW_INLINE int8_t operator()(float t) const {
    constexpr int32_t kShiftBits = 0x4b400000;
    t = t > low ? t : low;
    t = t < high ? t : high;
    const float shifted = t + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return static_cast<int8_t>(bits - kShiftBits + zero);
  }

  int8_t LowByte() const { return static_cast<int8_t>(static_cast<int32_t>(low) + zero); }

  int32_t zero;
  float low, high;
};

HEDGEROW_INLINE Index RoundUp(Index n, Index step) { return (n + step - 1) / step * step; }

// The length of parts of n, at most `most`, that are as equal as can be.
HEDGEROW_INLINE Index EvenPart(Index n, Index most) {
  if (n <= most) return n;
  const Index parts = (n + most - 1) / most;
  return (n + parts - 1) / parts;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_ROUNDING_H_
