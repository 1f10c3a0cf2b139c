// aarch64 NEON without dot products: two products of bytes are added in 16 bits (smull, smlal), where twice -128 * -127
// still fits, and those in pairs in 32 (sadalp).
#include "integers/arm.h"

namespace hedgerow {
namespace {

struct Isa : PairsOfPlaces {
  using Element = int8_t;
  static constexpr int kOffset = 0;
  static constexpr Index kGroup = 8, kNarrowest = 4, kWidest = 16;
  static constexpr Index MostPixels(Index) { return 4; }

  // Four channels, each lane of a sum every fourth pair of products.
  template <Index kPixels>
  static HEDGEROW_INLINE void Sum(const Patch& patch, const int8_t* x, const int8_t* w, int32x4_t (&sum)[4 * kPixels]) {
    constexpr Index kNext = kBlock * kGroup;
    HEDGEROW_UNROLL for (Index i = 0; i < 4 * kPixels; ++i) sum[i] = vdupq_n_s32(0);
    for (Index r = 0; r < patch.rows; ++r, x += patch.pitch) {
      const int8_t* from = x;
      for (Index k = patch.groups / 2; k > 0; --k, w += 2 * kNext, from += 2 * kGroup) {
        int8x8_t near[kPixels], far[kPixels];
        HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
          near[p] = vld1_s8(from + p * patch.step);
          far[p] = vld1_s8(from + p * patch.step + kGroup);
        }
        HEDGEROW_UNROLL for (Index c = 0; c < 4; ++c) {
          const int8x8_t u = vld1_s8(w + c * kGroup), v = vld1_s8(w + kNext + c * kGroup);
          // All pixels' products before their sums: an in-order core would wait for each.
          int16x8_t product[kPixels];
          HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) product[p] = vmull_s8(near[p], u);
          HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) product[p] = vmlal_s8(product[p], far[p], v);
          HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
            sum[4 * p + c] = vpadalq_s16(sum[4 * p + c], product[p]);
          }
        }
      }
      if (patch.groups % 2 == 0) continue;
      HEDGEROW_UNROLL for (Index c = 0; c < 4; ++c) {
        const int8x8_t u = vld1_s8(w + c * kGroup);
        HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
          sum[4 * p + c] = vpadalq_s16(sum[4 * p + c], vmull_s8(vld1_s8(from + p * patch.step), u));
        }
      }
      w += kNext;
    }
  }

  template <Index kPixels, Index kChannels>
  static void Tile(const Patch& patch, const int8_t* x, const uint8_t* block, const Target& target, int8_t* y) {
    for (Index c = 0; c < kChannels && c < target.channels; c += 4) {
      int32x4_t sum[4 * kPixels];
      Sum<kPixels>(patch, x, reinterpret_cast<const int8_t*>(block + kBlockHead) + c * kGroup, sum);
      const int32x4_t bias = BiasOf(block, c);
      const float32x4_t multiplier = MultiplierOf(block, c);
      HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
        const int32x4_t* s = sum + 4 * p;
        const int32x4_t total = vpaddq_s32(vpaddq_s32(s[0], s[1]), vpaddq_s32(s[2], s[3]));
        const int32x4_t whole = RoundFour(vaddq_s32(total, bias), multiplier, target.rounding);
        StoreFour(y + p * target.stride + c, whole, target.channels - c);
      }
    }
  }
};

}  // namespace
}  // namespace hedgerow

#include "integers/families.h"

namespace hedgerow {

const IntegerKernels kIntegersNeon = kIntegers;

}  // namespace hedgerow
