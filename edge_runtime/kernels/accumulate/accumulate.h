// The server's running sum: is an update finite, and add it to the sum.
#ifndef HEDGEROW_ACCUMULATE_H_
#define HEDGEROW_ACCUMULATE_H_

#include <cstddef>
#include <cstdint>

namespace hedgerow {

struct AccumulateKernels {
  // 1 if no x[i] is NaN or infinite, else 0; 1 for n = 0.
  int32_t (*all_finite)(size_t n, const float* x);
  // acc[i] += double(x[i]) * weight, multiply and add each rounded, so every ISA gives the same bits.
  // The product is exact while |weight| is an integer below 2^29. x and acc must not overlap.
  void (*accumulate)(size_t n, const float* x, double weight, double* acc);
};

extern const AccumulateKernels kAccumulateScalar;
extern const AccumulateKernels kAccumulateAvx2;  // x86-64 builds only
extern const AccumulateKernels kAccumulateNeon;  // aarch64 builds only

}  // namespace hedgerow

#endif  // HEDGEROW_ACCUMULATE_H_
