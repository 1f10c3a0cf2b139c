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

  static inline __attribute__((always_inline)) __m256i First(ptrdiff_t n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLanes + 8 - n));
  }
  static inline __attribute__((always_inline)) __m256 LoadPart(const float* p, ptrdiff_t n) {
    return _mm256_maskload_ps(p, First(n));
  }
  static inline __attribute__((always_inline)) void StorePart(float* p, __m256 v, ptrdiff_t n) {
    _mm256_maskstore_ps(p, First(n), v);
  }
};

}  // namespace

#include "isa/families.h"

namespace hedgerow {

const Kernel kKernelsAvx2[] = HEDGEROW_KERNELS;

}  // namespace hedgerow
