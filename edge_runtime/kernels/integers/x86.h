// What the ISAs of x86-64 share: sums to bytes, bytes to memory, and depthwise sums.
#ifndef HEDGEROW_INTEGERS_X86_H_
#define HEDGEROW_INTEGERS_X86_H_

#include <immintrin.h>

#include "integers/patch.h"

namespace hedgerow {
namespace {

// Eight sums as whole numbers that still lack the zero point. The same bits as Rounding's own, once they are bytes that
// are at least `low`: min gives its second operand where that is NaN, and NaN and what is far below become -2^31, which
// stays the least of all through saturating steps.
HEDGEROW_INLINE __m256i WholeEight(__m256i sum, __m256 multiplier, const Rounding& rounding) {
  const __m256 real = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), multiplier);
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(rounding.high), real));
}

HEDGEROW_INLINE __m128i RoundSixteen(__m256i low, __m256i high, __m256 m, __m256 n, const Rounding& rounding) {
  const __m256i a = WholeEight(low, m, rounding), b = WholeEight(high, n, rounding);
  const auto zero = static_cast<int16_t>(rounding.zero);
  const __m256i words = _mm256_adds_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(zero));
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words, words),
                                                    _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
  return _mm_max_epi8(_mm256_castsi256_si128(bytes), _mm_set1_epi8(rounding.LowByte()));
}

HEDGEROW_INLINE __m128i RoundEight(__m256i sum, __m256 multiplier, const Rounding& rounding) {
  const __m256i whole = WholeEight(sum, multiplier, rounding);
  const __m128i four = _mm256_castsi256_si128(whole), others = _mm256_extracti128_si256(whole, 1);
  const __m128i zero = _mm_set1_epi16(static_cast<int16_t>(rounding.zero));
  const __m128i words = _mm_adds_epi16(_mm_packs_epi32(four, others), zero);
  return _mm_max_epi8(_mm_packs_epi16(words, words), _mm_set1_epi8(rounding.LowByte()));
}

// The first n of eight bytes.
HEDGEROW_INLINE void StoreFew(int8_t* y, __m128i bytes, Index n) {
  auto left = static_cast<uint64_t>(_mm_cvtsi128_si64(bytes));
  if (n >= 8) return std::memcpy(y, &left, 8), void();
  if (n & 4) {
    std::memcpy(y, &left, 4);
    y += 4;
    left >>= 32;
  }
  if (n & 2) {
    std::memcpy(y, &left, 2);
    y += 2;
    left >>= 16;
  }
  if (n & 1) std::memcpy(y, &left, 1);
}

// The first n of sixteen bytes.
HEDGEROW_INLINE void StoreSome(int8_t* y, __m128i bytes, Index n) {
  if (n >= 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(y), bytes);
  StoreFew(y, bytes, n);
  if (n > 8) StoreFew(y + 8, _mm_srli_si128(bytes, 8), n - 8);
}

HEDGEROW_INLINE __m256 MultiplierOf(const uint8_t* block, Index half) {
  return _mm256_load_ps(reinterpret_cast<const float*>(block + 4 * kBlock) + 8 * half);
}

// Two places at a time: their bytes in turn, widened, times pairs of weights.
struct PairsOfPlaces {
  using Weight = int16_t;
  static constexpr Index WeightPlace(Index t, Index channel) { return (t / 2 * kBlock + channel) * 2 + t % 2; }

  static HEDGEROW_INLINE void Depthwise(const Index* places, Index pairs, const int8_t* x, const uint8_t* block,
                                        const Target& target, int8_t* y) {
    auto load = [](const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); };
    auto bytes = [](const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
    __m256i low = load(block), high = load(block + 32);
    const uint8_t* w = block + kBlockHead;
    for (Index t = 0; t < pairs; ++t, w += 64) {
      const __m128i a = bytes(x + places[2 * t]), b = bytes(x + places[2 * t + 1]);
      const __m256i left = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
      const __m256i right = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(left, load(w)));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(right, load(w + 32)));
    }
    const __m256 m = MultiplierOf(block, 0), n = MultiplierOf(block, 1);
    StoreSome(y, RoundSixteen(low, high, m, n, target.rounding), target.channels);
  }
};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_X86_H_
