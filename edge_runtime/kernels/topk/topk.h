// The largest magnitudes of a vector of floats, exactly.
#ifndef HEDGEROW_TOPK_H_
#define HEDGEROW_TOPK_H_

#include <cstddef>
#include <cstdint>

namespace hedgerow {

struct TopkKernels {
  // How many |x[i]| >= threshold; a NaN is not. threshold is 0 or more, infinity included.
  size_t (*count)(size_t n, const float* x, float threshold);
  // The k-th largest |x[i]|, counting each of several equal ones, 1 <= k <= n: so at least k elements are as large, and
  // fewer than k are larger. Returns 0, or -1 if x holds a NaN, which has no place in an order. Three passes over x and
  // 16 KiB of stack, whatever n is.
  int32_t (*kth)(size_t n, const float* x, size_t k, float* threshold);
  // Up to k elements with |x[i]| >= threshold, in the order of x: all larger ones before any equal one, and of those
  // that do not all fit, the first. Writes index and value of each, and returns how many: k if threshold is from `kth`
  // with the same k. Never takes a NaN. n <= 2^32.
  size_t (*take)(size_t n, const float* x, float threshold, size_t k, uint32_t* indices, float* values);
};

}  // namespace hedgerow

#endif  // HEDGEROW_TOPK_H_
