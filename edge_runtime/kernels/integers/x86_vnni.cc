// AVX-512 with VNNI: vpdpbusd adds four products of an unsigned and a signed byte into 32 bits without saturation, so x
// goes as x + 128, and each bias has 128 times the sum of its weights taken off.
#include "integers/x86.h"

namespace hedgerow {
namespace {

// Vectors of 16 and of 8 channels.
struct Zmm {
  using Ints = __m512i;
  static HEDGEROW_INLINE Ints Load(const uint8_t* block, Index v, Index block_bytes) {
    return _mm512_load_si512(block + v * block_bytes);
  }
  static HEDGEROW_INLINE Ints Splat(int32_t x) { return _mm512_set1_epi32(x); }
  static HEDGEROW_INLINE Ints Dot(Ints sum, Ints x, Ints w) { return _mm512_dpbusd_epi32(sum, x, w); }

  // As RoundSixteen; 32 or 64 channels are all stored. What it takes is read once: y might be anywhere.
  template <Index kVectors>
  struct Finish {
    HEDGEROW_INLINE Finish(const Patch& patch, const uint8_t* block, const Target& target)
        : high(_mm512_set1_ps(target.rounding.high)), channels(target.channels) {
      HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
        multiplier[v] = _mm512_castsi512_ps(Load(block + 4 * kBlock, v, patch.block_bytes));
      }
      const auto few = static_cast<int16_t>(target.rounding.zero);
      zero = kVectors == 1 ? _mm512_set1_epi32(few) : _mm512_set1_epi16(few);
      low = kVectors == 1 ? _mm512_set1_epi32(static_cast<int32_t>(target.rounding.low))
                          : _mm512_set1_epi8(target.rounding.LowByte());
    }

    HEDGEROW_INLINE void Store(const Ints (&sum)[kVectors], int8_t* y) const {
      __m512i whole[kVectors], words[(kVectors + 1) / 2];
      HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
        const __m512 real = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[v]), multiplier[v]);
        whole[v] = _mm512_cvtps_epi32(_mm512_min_ps(high, real));
      }
      if constexpr (kVectors == 1) {
        StoreSome(y, _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_max_epi32(whole[0], low), zero)), channels);
      } else {
        HEDGEROW_UNROLL for (Index v = 0; v < kVectors / 2; ++v) {
          words[v] = _mm512_adds_epi16(_mm512_packs_epi32(whole[2 * v], whole[2 * v + 1]), zero);
        }
        // In each quarter now stand four bytes of every vector.
        const __m512i turns = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m512i bytes = _mm512_permutexvar_epi32(turns, _mm512_packs_epi16(words[0], words[kVectors / 2 - 1]));
        const __m512i clamped = _mm512_max_epi8(bytes, low);
        if constexpr (kVectors == 4) {
          _mm512_storeu_si512(y, clamped);
        } else {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_castsi512_si256(clamped));
        }
      }
    }

    __m512 multiplier[kVectors], high;
    __m512i zero, low;
    Index channels;
  };
};

struct Ymm {
  using Ints = __m256i;
  static HEDGEROW_INLINE Ints Load(const uint8_t* block, Index v, Index) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(block) + v);
  }
  static HEDGEROW_INLINE Ints Splat(int32_t x) { return _mm256_set1_epi32(x); }
  static HEDGEROW_INLINE Ints Dot(Ints sum, Ints x, Ints w) { return _mm256_dpbusd_epi32(sum, x, w); }

  template <Index kVectors>
  struct Finish {
    HEDGEROW_INLINE Finish(const Patch&, const uint8_t* block, const Target& target)
        : rounding(target.rounding), channels(target.channels) {
      multiplier = _mm256_load_ps(reinterpret_cast<const float*>(block + 4 * kBlock));
    }
    HEDGEROW_INLINE void Store(const Ints (&sum)[kVectors], int8_t* y) const {
      StoreFew(y, RoundEight(sum[0], multiplier, rounding), channels);
    }

    Rounding rounding;
    Index channels;
    __m256 multiplier;
  };
};

template <typename Vector, Index kPixels, Index kVectors>
HEDGEROW_INLINE void TileOfVectors(const Patch& patch, const uint8_t* x, const uint8_t* block, const Target& target,
                                   int8_t* y) {
  typename Vector::Ints sum[kPixels][kVectors];
  HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
    const auto bias = Vector::Load(block, v, patch.block_bytes);
    HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) sum[p][v] = bias;
  }
  const uint8_t* w = block + kBlockHead;
  for (Index r = 0; r < patch.rows; ++r, x += patch.pitch) {
    // Every third pixel: the two after it are one and two steps on, which an address can say.
    const uint8_t* at[(kPixels + 2) / 3];
    HEDGEROW_UNROLL for (Index p = 0; p < kPixels; p += 3) at[p / 3] = x + p * patch.step;
    for (Index k = 0; k < patch.groups; ++k, w += 4 * kBlock) {
      typename Vector::Ints weights[kVectors];
      HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) {
        weights[v] = Vector::Load(w, v, patch.block_bytes);
      }
      HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) {
        int32_t four;
        std::memcpy(&four, at[p / 3] + p % 3 * patch.step, sizeof four);
        const auto value = Vector::Splat(four);
        HEDGEROW_UNROLL for (Index v = 0; v < kVectors; ++v) sum[p][v] = Vector::Dot(sum[p][v], value, weights[v]);
      }
      HEDGEROW_UNROLL for (Index p = 0; p < kPixels; p += 3) at[p / 3] += 4;
    }
  }
  const typename Vector::template Finish<kVectors> finish(patch, block, target);
  const Index stride = target.stride;
  HEDGEROW_UNROLL for (Index p = 0; p < kPixels; ++p) finish.Store(sum[p], y + p * stride);
}

struct Isa : PairsOfPlaces {
  using Element = uint8_t;
  static constexpr int kOffset = 128;
  static constexpr Index kGroup = 4, kNarrowest = 8, kWidest = 64;
  static constexpr Index MostPixels(Index channels) { return channels == 64 ? 6 : 12; }

  // As that of PairsOfPlaces, all channels at once.
  static HEDGEROW_INLINE void Depthwise(const Index* places, Index pairs, const int8_t* x, const uint8_t* block,
                                        const Target& target, int8_t* y) {
    auto bytes = [](const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
    __m512i sum[1] = {_mm512_load_si512(block)};
    const uint8_t* w = block + kBlockHead;
    for (Index t = 0; t < pairs; ++t, w += 64) {
      const __m128i a = bytes(x + places[2 * t]), b = bytes(x + places[2 * t + 1]);
      const __m256i turns = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
      sum[0] = _mm512_dpwssd_epi32(sum[0], _mm512_cvtepi8_epi16(turns), _mm512_load_si512(w));
    }
    Zmm::Finish<1>({}, block, target).Store(sum, y);
  }

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
