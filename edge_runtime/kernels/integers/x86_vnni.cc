// AVX-512 with VNNI: vpdpbusd adds four products of an unsigned and a signed byte into 32 bits without saturation, so x
// goes as x + 128, and each bias has 128 times the sum of its weights taken off.
#include "integers/x86.h"

namespace hedgerow {
namespace {

// 16 and 8 channels.
struct Zmm {
  using Ints = __m512i;
  static constexpr Index kLanes = 16;
  static HEDGEROW_INLINE Ints Load(const uint8_t* p) { return _mm512_load_si512(p); }
  static HEDGEROW_INLINE Ints Splat(int32_t x) { return _mm512_set1_epi32(x); }
  static HEDGEROW_INLINE Ints Dot(Ints sum, Ints x, Ints w) { return _mm512_dpbusd_epi32(sum, x, w); }
  static HEDGEROW_INLINE void Store(int8_t* y, Ints sum, Ints multiplier, const Rounding& rounding, Index n) {
    __m512 real = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_castsi512_ps(multiplier));
    real = _mm512_min_ps(_mm512_max_ps(real, _mm512_set1_ps(rounding.low)), _mm512_set1_ps(rounding.high));
    const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(real), _mm512_set1_epi32(rounding.zero));
    const __m128i bytes = _mm512_cvtepi32_epi8(whole);
    if (n >= kLanes) return _mm_storeu_si128(reinterpret_cast<__m128i*>(y), bytes);
    if (n >= 8) _mm_storel_epi64(reinterpret_cast<__m128i*>(y), bytes);
    StoreFew(y + (n & 8), n & 8 ? _mm_srli_si128(bytes, 8) : bytes, n & 7);
  }
};

struct Ymm {
  using Ints = __m256i;
  static constexpr Index kLanes = 8;
  static HEDGEROW_INLINE Ints Load(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static HEDGEROW_INLINE Ints Splat(int32_t x) { return _mm256_set1_epi32(x); }
  static HEDGEROW_INLINE Ints Dot(Ints sum, Ints x, Ints w) { return _mm256_dpbusd_epi32(sum, x, w); }
  static HEDGEROW_INLINE void Store(int8_t* y, Ints sum, Ints multiplier, const Rounding& rounding, Index n) {
    StoreFew(y, RoundEight(sum, _mm256_castsi256_ps(multiplier), rounding), n);
  }
};

template <typename Vector, Index kPixels, Index kVectors>
HEDGEROW_INLINE void TileOfVectors(const Patch& patch, const uint8_t* x, const uint8_t* block, const Target& target,
                                   int8_t* y) {
  typename Vector::Ints sum[kPixels][kVectors];
  HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
    const auto bias = Vector::Load(block + v * patch.block_bytes);
    HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) sum[p][v] = bias;
  }
  const uint8_t* w = block + kBlockHead;
  for (Index r = 0; r < patch.rows; ++r, x += patch.pitch) {
    // Every third pixel: the two after it are one and two steps on, which an address can say.
    const uint8_t* at[(kPixels + 2) / 3];
    HEDGEROW_UNROLL for (Index p = 0; p < kPixels; p += 3) at[p / 3] = x + p * patch.step;
    for (Index k = 0; k < patch.groups; ++k, w += 4 * kBlock) {
      typename Vector::Ints weights[kVectors];
      HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) weights[v] = Vector::Load(w + v * patch.block_bytes);
      HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
        int32_t four;
        std::memcpy(&four, at[p / 3] + p % 3 * patch.step, sizeof four);
        const auto value = Vector::Splat(four);
        HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) sum[p][v] = Vector::Dot(sum[p][v], value, weights[v]);
      }
      HEDGEROW_UNROLL for (Index p = 0; p < kPixels; p += 3) at[p / 3] += 4;
    }
  }
  HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
    const auto multiplier = Vector::Load(block + v * patch.block_bytes + 4 * kBlock);
    HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
      int8_t* out = y + p * target.stride + v * Vector::kLanes;
      Vector::Store(out, sum[p][v], multiplier, target.rounding, target.channels - v * Vector::kLanes);
    }
  }
}

struct Isa : PairsOfPlaces {
  using Element = uint8_t;
  static constexpr int kOffset = 128;
  static constexpr Index kGroup = 4, kNarrowest = 8, kWidest = 64;
  static constexpr Index MostPixels(Index channels) { return channels == 64 ? 6 : 12; }

  template <Index kPixels, Index kChannels>
  static void Tile(const Patch& patch, const uint8_t* x, const uint8_t* block, const Target& target, int8_t* y) {
    if constexpr (kChannels == 8) {
      TileOfVectors<Ymm, kPixels, 1>(patch, x, block, target, y);
    } else {
      TileOfVectors<Zmm, kPixels, kChannels / 16>(patch, x, block, target, y);
    }
  }
};

}  // namespace
}  // namespace hedgerow

#include "integers/families.h"

namespace hedgerow {

const IntegerKernels kIntegersVnni = kIntegers;

}  // namespace hedgerow
