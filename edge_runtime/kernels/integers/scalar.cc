// Plain C++: what every CPU has, and what the other ISAs are tested against.
#include "integers/patch.h"

namespace hedgerow {
namespace {

struct Isa {
  using Element = int8_t;
  static constexpr int kOffset = 0;
  static constexpr Index kGroup = 1, kNarrowest = 16, kWidest = 16;
  static constexpr Index MostPixels(Index) { return 2; }

  using Weight = int16_t;
  static constexpr Index WeightPlace(Index t, Index channel) { return t * kBlock + channel; }

  static void Depthwise(const Index* places, Index pairs, const int8_t* x, const uint8_t* block, const Target& target,
                        int8_t* y) {
    uint32_t sum[kBlock];
    float multiplier[kBlock];
    std::memcpy(sum, block, sizeof sum);
    std::memcpy(multiplier, block + sizeof sum, sizeof multiplier);
    const auto* w = reinterpret_cast<const int16_t*>(block + kBlockHead);
    for (Index t = 0; t < 2 * pairs; ++t, w += kBlock) {
      const int8_t* from = x + places[t];
      for (Index c = 0; c < kBlock; ++c) sum[c] += static_cast<uint32_t>(from[c] * w[c]);
    }
    for (Index c = 0; c < target.channels; ++c) {
      y[c] = target.rounding(static_cast<float>(static_cast<int32_t>(sum[c])) * multiplier[c]);
    }
  }

  template <Index kPixels, Index kChannels>
  static void Tile(const Patch& patch, const int8_t* x, const uint8_t* block, const Target& target, int8_t* y) {
    uint32_t bias[kBlock], sum[kPixels][kBlock];  // unsigned: they may wrap
    float multiplier[kBlock];
    std::memcpy(bias, block, sizeof bias);
    std::memcpy(multiplier, block + sizeof bias, sizeof multiplier);
    for (Index p = 0; p < kPixels; ++p) std::memcpy(sum[p], bias, sizeof bias);
    const auto* w = reinterpret_cast<const int8_t*>(block + kBlockHead);
    for (Index r = 0; r < patch.rows; ++r, x += patch.pitch) {
      for (Index k = 0; k < patch.groups; ++k, w += kBlock) {
        for (Index p = 0; p < kPixels; ++p) {
          const int32_t value = x[p * patch.step + k];
          for (Index c = 0; c < kBlock; ++c) sum[p][c] += static_cast<uint32_t>(value * w[c]);
        }
      }
    }
    for (Index p = 0; p < kPixels; ++p) {
      for (Index c = 0; c < target.channels; ++c) {
        const auto total = static_cast<float>(static_cast<int32_t>(sum[p][c]));
        y[p * target.stride + c] = target.rounding(total * multiplier[c]);
      }
    }
  }
};

}  // namespace
}  // namespace hedgerow

#include "integers/families.h"

namespace hedgerow {

const IntegerKernels kIntegersScalar = kIntegers;

}  // namespace hedgerow
