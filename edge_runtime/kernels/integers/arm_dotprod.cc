// aarch64 with dot products: sdot adds four products of bytes into each lane of 32 bits, one side from a chosen lane.
#include "integers/arm.h"

namespace hedgerow {
namespace {

struct Isa : PairsOfPlaces {
  using Element = int8_t;
  static constexpr int kOffset = 0;
  static constexpr Index kGroup = 4, kNarrowest = 4, kWidest = 16;
  // Six pixels of 16 channels would fill the registers, but GCC loads two vectors of weights at once and spills.
  static constexpr Index MostPixels(Index channels) { return channels == 16 ? 5 : 8; }

  template <Index kPixels, Index kChannels>
  static void Tile(const Patch& patch, const int8_t* x, const uint8_t* block, const Target& target, int8_t* y) {
    constexpr Index kVectors = kChannels / 4, kNext = kBlock * kGroup;
    int32x4_t sum[kPixels * kVectors];
    HEDGEROW_UNROLL for (Index i = 0; i < kPixels * kVectors; ++i) sum[i] = BiasOf(block, i % kVectors * 4);
    const auto* w = reinterpret_cast<const int8_t*>(block + kBlockHead);
    for (Index r = 0; r < patch.rows; ++r, x += patch.pitch) {
      const int8_t* from = x;
      for (Index k = patch.groups / 4; k > 0; --k, w += 4 * kNext, from += 4 * kGroup) {
        int8x16_t value[kPixels];
        HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) value[p] = vld1q_s8(from + p * patch.step);
#define HEDGEROW_GROUP(lane)                                                                                  \
  HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {                                                      \
    const int8x16_t weights = vld1q_s8(w + lane * kNext + 16 * v);                                            \
    HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {                                                     \
      sum[p * kVectors + v] = vdotq_laneq_s32(sum[p * kVectors + v], weights, value[p], lane);                \
    }                                                                                                         \
  }
        HEDGEROW_GROUP(0)
        HEDGEROW_GROUP(1)
        HEDGEROW_GROUP(2)
        HEDGEROW_GROUP(3)
#undef HEDGEROW_GROUP
      }
      for (Index k = patch.groups % 4; k > 0; --k, w += kNext, from += kGroup) {
        int8x16_t value[kPixels];
        HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
          int32_t four;
          std::memcpy(&four, from + p * patch.step, sizeof four);
          value[p] = vreinterpretq_s8_s32(vdupq_n_s32(four));
        }
        HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
          const int8x16_t weights = vld1q_s8(w + 16 * v);
          HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
            sum[p * kVectors + v] = vdotq_s32(sum[p * kVectors + v], weights, value[p]);
          }
        }
      }
    }
    HEDGEROW_UNROLL for (Index i = 0; i < kPixels * kVectors; ++i) {
      const Index channel = i % kVectors * 4, n = target.channels - channel;
      const int32x4_t whole = RoundFour(sum[i], MultiplierOf(block, channel), target.rounding);
      if (n > 0) StoreFour(y + i / kVectors * target.stride + channel, whole, n);
    }
  }
};

}  // namespace
}  // namespace hedgerow

#include "integers/families.h"

namespace hedgerow {

const IntegerKernels kIntegersDotprod = kIntegers;

}  // namespace hedgerow
