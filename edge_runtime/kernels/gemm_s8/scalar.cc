// Portable reference of the gemm_s8 family; the other ISAs are tested against it.
#include "gemm_s8/generic.h"

namespace hedgerow {
namespace {

struct Scalar {
  static constexpr size_t kRows = 4, kColumns = 4, kStep = 1, kRowStep = 1;
  using Left = int8_t;

  static void PackLeft(size_t rows, size_t depth, const int8_t* a, size_t stride, int8_t* strip) {
    Interleave<kRows, kStep>(rows, depth, a, stride, strip);
  }

  template <size_t kTall>
  static void Tile(size_t groups, const int8_t* a, const int8_t* b, int32_t* c, size_t stride, bool add) {
    uint32_t sum[kTall][kColumns] = {};  // unsigned: it may wrap
    for (; groups > 0; --groups, a += kRows, b += kColumns) {
      for (size_t r = 0; r < kTall; ++r) {
        for (size_t n = 0; n < kColumns; ++n) sum[r][n] += static_cast<uint32_t>(a[r] * b[n]);
      }
    }
    for (size_t r = 0; r < kTall; ++r) {
      for (size_t n = 0; n < kColumns; ++n) {
        int32_t& out = c[r * stride + n];
        out = static_cast<int32_t>(sum[r][n] + (add ? static_cast<uint32_t>(out) : 0));
      }
    }
  }
};

}  // namespace

const GemmS8Kernels kGemmS8Scalar = MakeGemmS8Kernels<Scalar>();

}  // namespace hedgerow
