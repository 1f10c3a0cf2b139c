// sgemm's tile on aarch64: 8 x 12 floats of c in 24 of the 32 registers, for packed panels of a and of b.
//
//   tile[r][n] = sum_k a[k][r] b[k][n]      r < 8, n < 12, k < depth
//
// a is depth x 8 and b depth x 12, both without gaps and padded with zeros where the matrix ends; tile is 8 x 12,
// row-major, and overwritten: it is the caller who adds it to c, or cuts it at c's edge. depth may be 0.
//
// tests/arm/hot_loops.py holds the loop to 95 % of what a Cortex-A72 and a Cortex-A76 can do. It takes two things to get
// there from GCC: sums in one flat array with every loop over it unrolled (else it stores them all each time round), and
// b's vectors multiplied by a lane of a's (else each of a's floats needs a load of its own).
#ifndef HEDGEROW_GEMM_NEON_TILE_H_
#define HEDGEROW_GEMM_NEON_TILE_H_

#include <arm_neon.h>

#include <cstddef>

namespace {

#define HEDGEROW_ROW(r, x, lane)                                     \
  sum[3 * (r)] = vfmaq_laneq_f32(sum[3 * (r)], y0, x, lane);         \
  sum[3 * (r) + 1] = vfmaq_laneq_f32(sum[3 * (r) + 1], y1, x, lane); \
  sum[3 * (r) + 2] = vfmaq_laneq_f32(sum[3 * (r) + 2], y2, x, lane);

// Not inlined: the registers are all its own, and hot_loops.py finds it by name.
__attribute__((noinline)) inline void SgemmTile8x12(ptrdiff_t depth, const float* a, const float* b, float* tile) {
  float32x4_t sum[24];
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) sum[i] = vdupq_n_f32(0);
  for (const float* end = a + 8 * depth; a != end; a += 8, b += 12) {
    const float32x4_t x0 = vld1q_f32(a), x1 = vld1q_f32(a + 4);
    const float32x4_t y0 = vld1q_f32(b), y1 = vld1q_f32(b + 4), y2 = vld1q_f32(b + 8);
    HEDGEROW_ROW(0, x0, 0)
    HEDGEROW_ROW(1, x0, 1)
    HEDGEROW_ROW(2, x0, 2)
    HEDGEROW_ROW(3, x0, 3)
    HEDGEROW_ROW(4, x1, 0)
    HEDGEROW_ROW(5, x1, 1)
    HEDGEROW_ROW(6, x1, 2)
    HEDGEROW_ROW(7, x1, 3)
  }
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) vst1q_f32(tile + 4 * i, sum[i]);
}

#undef HEDGEROW_ROW

}  // namespace

#endif  // HEDGEROW_GEMM_NEON_TILE_H_
