// AVX2: bytes widened to 16 bits, pairs of them multiplied and added in 32 (pmaddwd). pmaddubsw would take bytes as
// they are, but it adds two products in 16 bits, with saturation.
#include <immintrin.h>

#include "gemm_s8/generic.h"

namespace hedgerow {
namespace {

struct Avx2 {
  static constexpr size_t kRows = 6, kColumns = 16, kStep = 2, kRowStep = 1;
  using Left = int16_t;

  // Row r at strip + r * kDepth, an odd last element followed by a zero.
  static void PackLeft(size_t rows, size_t depth, const int8_t* a, size_t stride, int16_t* strip) {
    for (size_t r = 0; r < rows; ++r, a += stride, strip += kDepth) {
      size_t k = 0;
      for (; k + 16 <= depth; k += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + k));
        _mm256_store_si256(reinterpret_cast<__m256i*>(strip + k), _mm256_cvtepi8_epi16(bytes));
      }
      for (; k < depth; ++k) strip[k] = a[k];
      if (k % 2) strip[k] = 0;
    }
  }

  static __m256i Widen(const int8_t* b) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
  }

  template <size_t kTall>
  static void Tile(size_t groups, const int16_t* a, const int8_t* b, int32_t* c, size_t stride, bool add) {
    __m256i sum[kTall][2];
    HEDGEROW_UNROLL for (size_t r = 0; r < kTall; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (; groups > 0; --groups, a += kStep, b += kColumns * kStep) {
      const __m256i left = Widen(b), right = Widen(b + 16);
      HEDGEROW_UNROLL for (size_t r = 0; r < kTall; ++r) {
        int32_t pair;
        std::memcpy(&pair, a + r * kDepth, sizeof pair);
        const __m256i x = _mm256_set1_epi32(pair);
        sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(x, left));
        sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(x, right));
      }
    }
    HEDGEROW_UNROLL for (size_t r = 0; r < kTall; ++r) {
      HEDGEROW_UNROLL for (size_t half = 0; half < 2; ++half) {
        __m256i* out = reinterpret_cast<__m256i*>(c + r * stride + 8 * half);
        const __m256i total = add ? _mm256_add_epi32(sum[r][half], _mm256_loadu_si256(out)) : sum[r][half];
        _mm256_storeu_si256(out, total);
      }
    }
  }
};

}  // namespace

const GemmS8Kernels kGemmS8Avx2 = MakeGemmS8Kernels<Avx2>();

}  // namespace hedgerow
