// AVX2: bytes widened to 16 bits, pairs of them multiplied and added in 32 (pmaddwd). pmaddubsw would take bytes as
// they are, but it adds two products in 16 bits, with saturation.
#include "integers/x86.h"

namespace hedgerow {
namespace {

struct Isa : PairsOfPlaces {
  using Element = int16_t;
  static constexpr int kOffset = 0;
  static constexpr Index kGroup = 2, kNarrowest = 8, kWidest = 16;
  static constexpr Index MostPixels(Index channels) { return channels == 8 ? 12 : 6; }

  template <Index kPixels, Index kChannels>
  static void Tile(const Patch& patch, const int16_t* x, const uint8_t* block, const Target& target, int8_t* y) {
    constexpr Index kVectors = kChannels / 8;
    __m256i sum[kPixels][kVectors];
    HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
      const __m256i bias = _mm256_load_si256(reinterpret_cast<const __m256i*>(block) + v);
      HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) sum[p][v] = bias;
    }
    const uint8_t* w = block + kBlockHead;
    for (Index r = 0; r < patch.rows; ++r, x += patch.pitch) {
      const int16_t* at[(kPixels + 2) / 3];
      HEDGEROW_UNROLL for (Index p = 0; p < kPixels; p += 3) at[p / 3] = x + p * patch.step;
      for (Index k = 0; k < patch.groups; ++k, w += kBlock * kGroup) {
        __m256i weights[kVectors];
        HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
          weights[v] = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(w) + v));
        }
        HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
          int32_t pair;
          std::memcpy(&pair, at[p / 3] + p % 3 * patch.step, sizeof pair);
          const __m256i value = _mm256_set1_epi32(pair);
          HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
            sum[p][v] = _mm256_add_epi32(sum[p][v], _mm256_madd_epi16(value, weights[v]));
          }
        }
        HEDGEROW_UNROLL for (Index p = 0; p < kPixels; p += 3) at[p / 3] += kGroup;
      }
    }
    // Read once: y might be anywhere.
    const Target own = target;
    const __m256 first = MultiplierOf(block, 0), second = MultiplierOf(block, kVectors - 1);
    HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
      int8_t* out = y + p * own.stride;
      if constexpr (kVectors == 2) {
        StoreSome(out, RoundSixteen(sum[p][0], sum[p][1], first, second, own.rounding), own.channels);
      } else {
        StoreFew(out, RoundEight(sum[p][0], first, own.rounding), own.channels);
      }
    }
  }
};

}  // namespace
}  // namespace hedgerow

#include "integers/families.h"

namespace hedgerow {

const IntegerKernels kIntegersAvx2 = kIntegers;

}  // namespace hedgerow
