// AVX2 and FMA: 16 registers, of which a tile of 6 x 16 floats takes 12.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace {

// Read from 8 - n: n lanes that are on, then lanes that are off.
constexpr int32_t kLanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

struct Isa {
  static constexpr int kWidth = 8;
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 2;
  static constexpr bool kPacks = false;

  // The larger and the smaller of x and a number; x where it is NaN.
  static inline __attribute__((always_inline)) __m256 AtLeast(__m256 low, __m256 x) { return _mm256_max_ps(low, x); }
  static inline __attribute__((always_inline)) __m256 AtMost(__m256 high, __m256 x) { return _mm256_min_ps(high, x); }

  static inline __attribute__((always_inline)) __m256 LoadPart(const float* p, ptrdiff_t n) {
    return _mm256_maskload_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLanes + 8 - n)));
  }
  static inline __attribute__((always_inline)) void StorePart(float* p, __m256 v, ptrdiff_t n) {
    // In halves: AMD's masked stores take ten times as long as its plain ones.
    __m128 part = _mm256_castps256_ps128(v);
    if (n & 4) {
      _mm_storeu_ps(p, part);
      part = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if (n & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
      part = _mm_movehl_ps(part, part);
      p += 2;
    }
    if (n & 1) _mm_store_ss(p, part);
  }
};

}  // namespace

#include "isa/families.h"

namespace hedgerow {

const Kernel kKernelsAvx2[] = HEDGEROW_KERNELS;

}  // namespace hedgerow
