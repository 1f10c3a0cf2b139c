// What the ISAs of aarch64 share: sums to bytes, bytes to memory, and depthwise sums.
#ifndef HEDGEROW_INTEGERS_ARM_H_
#define HEDGEROW_INTEGERS_ARM_H_

#include <arm_neon.h>

#include "integers/patch.h"

namespace hedgerow {
namespace {

// The same as Rounding's own: maxnm gives the number where the other is NaN.
HEDGEROW_INLINE int32x4_t RoundFour(int32x4_t sum, float32x4_t multiplier, const Rounding& rounding) {
  const float32x4_t real = vmaxnmq_f32(vmulq_f32(vcvtq_f32_s32(sum), multiplier), vdupq_n_f32(rounding.low));
  return vaddq_s32(vcvtnq_s32_f32(vminnmq_f32(real, vdupq_n_f32(rounding.high))), vdupq_n_s32(rounding.zero));
}

// The first n of four.
HEDGEROW_INLINE void StoreFour(int8_t* y, int32x4_t whole, Index n) {
  const int16x4_t words = vmovn_s32(whole);
  uint32_t bytes = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
  if (n >= 4) return std::memcpy(y, &bytes, 4), void();
  for (Index i = 0; i < n; ++i, bytes >>= 8) y[i] = static_cast<int8_t>(bytes);
}

HEDGEROW_INLINE float32x4_t MultiplierOf(const uint8_t* block, Index channel) {
  return vld1q_f32(reinterpret_cast<const float*>(block + 4 * kBlock) + channel);
}
HEDGEROW_INLINE int32x4_t BiasOf(const uint8_t* block, Index channel) {
  return vld1q_s32(reinterpret_cast<const int32_t*>(block) + channel);
}

// Two products are added in 16 bits first, where twice -128 * -127 still fits.
struct PairsOfPlaces {
  using Weight = int8_t;
  static constexpr Index WeightPlace(Index t, Index channel) { return t * kBlock + channel; }

  static HEDGEROW_INLINE void Depthwise(const Index* places, Index pairs, const int8_t* x, const uint8_t* block,
                                        const Target& target, int8_t* y) {
    int32x4_t sum[4];
    HEDGEROW_UNROLL for (Index i = 0; i < 4; ++i) sum[i] = BiasOf(block, 4 * i);
    const auto* w = reinterpret_cast<const int8_t*>(block + kBlockHead);
    for (Index t = 0; t < pairs; ++t, w += 2 * kBlock) {
      const int8x16_t a = vld1q_s8(x + places[2 * t]), b = vld1q_s8(x + places[2 * t + 1]);
      const int8x16_t u = vld1q_s8(w), v = vld1q_s8(w + kBlock);
      const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(u)), vget_low_s8(b), vget_low_s8(v));
      const int16x8_t high = vmlal_high_s8(vmull_high_s8(a, u), b, v);
      sum[0] = vaddw_s16(sum[0], vget_low_s16(low));
      sum[1] = vaddw_high_s16(sum[1], low);
      sum[2] = vaddw_s16(sum[2], vget_low_s16(high));
      sum[3] = vaddw_high_s16(sum[3], high);
    }
    HEDGEROW_UNROLL for (Index i = 0; i < 4; ++i) {
      const Index n = target.channels - 4 * i;
      if (n > 0) StoreFour(y + 4 * i, RoundFour(sum[i], MultiplierOf(block, 4 * i), target.rounding), n);
    }
  }
};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_ARM_H_
