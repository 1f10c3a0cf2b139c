// aarch64 with int8 matrix multiplies: smmla takes 2 rows x 8 of k from both sides into a 2 x 2 block of c; 4 x 6 blocks.
#include <arm_neon.h>

#include "gemm_s8/generic.h"

namespace hedgerow {
namespace {

struct I8mm {
  static constexpr size_t kRows = 8, kColumns = 12, kStep = 8, kRowStep = 2;
  using Left = int8_t;

  static void PackLeft(size_t rows, size_t depth, const int8_t* a, size_t stride, int8_t* strip) {
    Interleave<kRows, kStep>(rows, depth, a, stride, strip);
  }

  template <size_t kTall>
  static void Tile(size_t groups, const int8_t* a, const int8_t* b, int32_t* c, size_t stride, bool add) {
    constexpr size_t kAcross = kColumns / 2, kBlocks = kTall / 2 * kAcross;
    int32x4_t sum[kBlocks];
    HEDGEROW_UNROLL for (size_t i = 0; i < kBlocks; ++i) sum[i] = vdupq_n_s32(0);
    for (; groups > 0; --groups, a += kRows * kStep, b += kColumns * kStep) {
      int8x16_t x[kTall / 2];
      HEDGEROW_UNROLL for (size_t r = 0; r < kTall / 2; ++r) x[r] = vld1q_s8(a + 16 * r);
      HEDGEROW_UNROLL for (size_t n = 0; n < kAcross; ++n) {
        const int8x16_t y = vld1q_s8(b + 16 * n);
        HEDGEROW_UNROLL for (size_t r = 0; r < kTall / 2; ++r) {
          sum[r * kAcross + n] = vmmlaq_s32(sum[r * kAcross + n], x[r], y);
        }
      }
    }
    HEDGEROW_UNROLL for (size_t i = 0; i < kBlocks; i += 2) {
      const size_t row = i / kAcross * 2, column = i % kAcross * 2;
      const int32x4_t total[2] = {vcombine_s32(vget_low_s32(sum[i]), vget_low_s32(sum[i + 1])),
                                  vcombine_s32(vget_high_s32(sum[i]), vget_high_s32(sum[i + 1]))};
      HEDGEROW_UNROLL for (size_t r = 0; r < 2; ++r) {
        int32_t* out = c + (row + r) * stride + column;
        vst1q_s32(out, add ? vaddq_s32(total[r], vld1q_s32(out)) : total[r]);
      }
    }
  }
};

}  // namespace

const GemmS8Kernels kGemmS8I8mm = MakeGemmS8Kernels<I8mm>();

}  // namespace hedgerow
