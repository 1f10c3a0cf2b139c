// aarch64 NEON: four floats a block, widened to two vectors of two doubles. (armv7 NEON has no doubles.)
#include <arm_neon.h>

#include "accumulate/generic.h"

namespace hedgerow {
namespace {

struct Neon {
  static constexpr size_t kFiniteWidth = 16, kWidth = 4;

  static bool BlockFinite(const float* x) {
    const uint32x4_t exponent = vdupq_n_u32(0x7f800000u);
    uint32x4_t bad = vdupq_n_u32(0);
    for (int part = 0; part < 4; ++part) {
      const uint32x4_t bits = vreinterpretq_u32_f32(vld1q_f32(x + 4 * part));
      bad = vorrq_u32(bad, vceqq_u32(vandq_u32(bits, exponent), exponent));
    }
    return vmaxvq_u32(bad) == 0;
  }

  static void BlockAccumulate(const float* x, double weight, double* acc) {
    const float32x4_t narrow = vld1q_f32(x);
    const float64x2_t low = vmulq_n_f64(vcvt_f64_f32(vget_low_f32(narrow)), weight);
    const float64x2_t high = vmulq_n_f64(vcvt_high_f64_f32(narrow), weight);
    vst1q_f64(acc, vaddq_f64(vld1q_f64(acc), low));
    vst1q_f64(acc + 2, vaddq_f64(vld1q_f64(acc + 2), high));
  }
};

}  // namespace

const AccumulateKernels kAccumulateNeon = MakeAccumulateKernels<Neon>();

}  // namespace hedgerow
