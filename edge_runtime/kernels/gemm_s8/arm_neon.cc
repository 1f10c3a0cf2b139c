// aarch64 NEON without dot products: bytes multiplied into 16 bits (smull) and added in pairs in 32 (sadalp). Adding a
// second product in 16 bits first (smlal2) would save an instruction, but twice -128 * -128 does not fit there.
#include <arm_neon.h>

#include "gemm_s8/generic.h"

namespace hedgerow {
namespace {

struct Neon {
  static constexpr size_t kRows = 4, kColumns = 4, kStep = 16, kRowStep = 1;
  using Left = int8_t;

  static void PackLeft(size_t rows, size_t depth, const int8_t* a, size_t stride, int8_t* strip) {
    Interleave<kRows, kStep>(rows, depth, a, stride, strip);
  }

  template <size_t kTall>
  static void Tile(size_t groups, const int8_t* a, const int8_t* b, int32_t* c, size_t stride, bool add) {
    int32x4_t sum[kTall * kColumns];
    HEDGEROW_UNROLL for (size_t i = 0; i < kTall * kColumns; ++i) sum[i] = vdupq_n_s32(0);
    for (; groups > 0; --groups, a += kRows * kStep, b += kColumns * kStep) {
      int8x16_t x[kTall];
      HEDGEROW_UNROLL for (size_t r = 0; r < kTall; ++r) x[r] = vld1q_s8(a + r * kStep);
      HEDGEROW_UNROLL for (size_t n = 0; n < kColumns; ++n) {
        const int8x16_t y = vld1q_s8(b + n * kStep);
        // All rows' products before their sums: an in-order core would wait for each.
        int16x8_t low[kTall], high[kTall];
        HEDGEROW_UNROLL for (size_t r = 0; r < kTall; ++r) low[r] = vmull_s8(vget_low_s8(x[r]), vget_low_s8(y));
        HEDGEROW_UNROLL for (size_t r = 0; r < kTall; ++r) high[r] = vmull_high_s8(x[r], y);
        int32x4_t* s = sum + n * kTall;
        HEDGEROW_UNROLL for (size_t r = 0; r < kTall; ++r) s[r] = vpadalq_s16(s[r], low[r]);
        HEDGEROW_UNROLL for (size_t r = 0; r < kTall; ++r) s[r] = vpadalq_s16(s[r], high[r]);
      }
    }
    HEDGEROW_UNROLL for (size_t r = 0; r < kTall; ++r) {
      const int32x4_t left = vpaddq_s32(sum[r], sum[kTall + r]);
      const int32x4_t total = vpaddq_s32(left, vpaddq_s32(sum[2 * kTall + r], sum[3 * kTall + r]));
      int32_t* out = c + r * stride;
      vst1q_s32(out, add ? vaddq_s32(total, vld1q_s32(out)) : total);
    }
  }
};

}  // namespace

const GemmS8Kernels kGemmS8Neon = MakeGemmS8Kernels<Neon>();

}  // namespace hedgerow
