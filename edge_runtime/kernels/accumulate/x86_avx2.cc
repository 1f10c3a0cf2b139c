// AVX2: eight floats a block, widened to two vectors of four doubles.
#include <immintrin.h>

#include "accumulate/generic.h"

namespace hedgerow {
namespace {

struct Avx2 {
  static constexpr size_t kFiniteWidth = 32, kWidth = 8;

  static bool BlockFinite(const float* x) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    __m256i bad = _mm256_setzero_si256();
    for (int part = 0; part < 4; ++part) {
      const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + 8 * part));
      bad = _mm256_or_si256(bad, _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent));
    }
    return _mm256_testz_si256(bad, bad);
  }

  static void BlockAccumulate(const float* x, double weight, double* acc) {
    const __m256d w = _mm256_set1_pd(weight);
    for (int half = 0; half < 2; ++half) {
      const __m256d wide = _mm256_cvtps_pd(_mm_loadu_ps(x + 4 * half));
      double* out = acc + 4 * half;
      _mm256_storeu_pd(out, _mm256_add_pd(_mm256_loadu_pd(out), _mm256_mul_pd(wide, w)));
    }
  }
};

}  // namespace

const AccumulateKernels kAccumulateAvx2 = MakeAccumulateKernels<Avx2>();

}  // namespace hedgerow
