// Matrix products of signed bytes, exact in int32.
//
//   c[m][n] = sum_k a[m][k] * b[n][k]      a: m x k, b: n x k, c: m x n, rows contiguous, c apart from a and b
//
// Every product is summed in 32 bits, never in a saturating 16-bit step, so c is exact for k <= kGemmS8ExactDepth
// = 131071 = floor((2^31 - 1) / 2^14), whatever a and b hold, -128 included; for a larger k it is exact mod 2^32.
// b is packed first, once for a layer's weights: panels of a few of its rows, interleaved by small groups of k and
// padded with zeros, in the ISA's own layout. The sizes are 0 or more; c is zeros where k = 0.
#ifndef HEDGEROW_GEMM_S8_H_
#define HEDGEROW_GEMM_S8_H_

#include <cstddef>
#include <cstdint>

namespace hedgerow {

constexpr size_t kGemmS8ExactDepth = 131071;

struct GemmS8Kernels {
  // Bytes of a packed b.
  size_t (*pack_bytes)(size_t n, size_t k);
  void (*pack)(size_t n, size_t k, const int8_t* b, int8_t* packed);
  // `packed` was written by this ISA's `pack` for the same n and k.
  void (*multiply)(size_t m, size_t n, size_t k, const int8_t* a, const int8_t* packed, int32_t* c);
};

extern const GemmS8Kernels kGemmS8Scalar;
extern const GemmS8Kernels kGemmS8Avx2;     // x86-64 builds only
extern const GemmS8Kernels kGemmS8Neon;     // aarch64 builds only, as are the next two
extern const GemmS8Kernels kGemmS8Dotprod;  // needs the dot product instructions
extern const GemmS8Kernels kGemmS8I8mm;     // needs the int8 matrix instructions

}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_S8_H_
