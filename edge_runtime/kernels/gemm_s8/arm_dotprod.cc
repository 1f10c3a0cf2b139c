// aarch64 with dot products (Cortex-A76): sdot by lane, 8 rows x 12 columns in 24 registers, 4 elements of k at a time.
// Flat accumulators and full unrolling keep them there: GCC spills a sum[8][3] that a loop walks.
#include <arm_neon.h>

#include "gemm_s8/generic.h"

namespace hedgerow {
namespace {

struct Dotprod {
  static constexpr size_t kRows = 8, kColumns = 12, kStep = 4, kRowStep = 1;
  using Left = int8_t;

  static void PackLeft(size_t rows, size_t depth, const int8_t* a, size_t stride, int8_t* strip) {
    Interleave<kRows, kStep>(rows, depth, a, stride, strip);
  }

  template <size_t kTall>
  static void Tile(size_t groups, const int8_t* a, const int8_t* b, int32_t* c, size_t stride, bool add) {
    int32x4_t sum[3 * kTall];
    HEDGEROW_UNROLL for (size_t i = 0; i < 3 * kTall; ++i) sum[i] = vdupq_n_s32(0);
    for (; groups > 0; --groups, a += kRows * kStep, b += kColumns * kStep) {
      const int8x16_t x0 = vld1q_s8(a), x1 = vld1q_s8(a + 16);
      const int8x16_t y0 = vld1q_s8(b), y1 = vld1q_s8(b + 16), y2 = vld1q_s8(b + 32);
#define HEDGEROW_ROW(row, x, lane)                                       \
  if constexpr (row < kTall) {                                           \
    sum[3 * row] = vdotq_laneq_s32(sum[3 * row], y0, x, lane);           \
    sum[3 * row + 1] = vdotq_laneq_s32(sum[3 * row + 1], y1, x, lane);   \
    sum[3 * row + 2] = vdotq_laneq_s32(sum[3 * row + 2], y2, x, lane);   \
  }
      HEDGEROW_ROW(0, x0, 0)
      HEDGEROW_ROW(1, x0, 1)
      HEDGEROW_ROW(2, x0, 2)
      HEDGEROW_ROW(3, x0, 3)
      HEDGEROW_ROW(4, x1, 0)
      HEDGEROW_ROW(5, x1, 1)
      HEDGEROW_ROW(6, x1, 2)
      HEDGEROW_ROW(7, x1, 3)
#undef HEDGEROW_ROW
    }
    HEDGEROW_UNROLL for (size_t i = 0; i < 3 * kTall; ++i) {
      int32_t* out = c + i / 3 * stride + i % 3 * 4;
      vst1q_s32(out, add ? vaddq_s32(sum[i], vld1q_s32(out)) : sum[i]);
    }
  }
};

}  // namespace

const GemmS8Kernels kGemmS8Dotprod = MakeGemmS8Kernels<Dotprod>();

}  // namespace hedgerow
