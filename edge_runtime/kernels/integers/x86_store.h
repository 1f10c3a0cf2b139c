// Eight int32 sums to bytes, and the first of eight bytes into memory.
#ifndef HEDGEROW_INTEGERS_X86_STORE_H_
#define HEDGEROW_INTEGERS_X86_STORE_H_

#include <immintrin.h>

#include "integers/rounding.h"

namespace hedgerow {
namespace {

// The same bits as Rounding's own: max and min give their second operand where the first is NaN.
HEDGEROW_INLINE __m128i RoundEight(__m256i sum, __m256 multiplier, const Rounding& rounding) {
  __m256 real = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), multiplier);
  real = _mm256_min_ps(_mm256_max_ps(real, _mm256_set1_ps(rounding.low)), _mm256_set1_ps(rounding.high));
  const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(real), _mm256_set1_epi32(rounding.zero));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  return _mm_packs_epi16(words, words);
}

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

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_X86_STORE_H_
