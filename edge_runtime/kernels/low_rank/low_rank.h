// A matrix as the product of two thin ones.
#ifndef HEDGEROW_LOW_RANK_H_
#define HEDGEROW_LOW_RANK_H_

#include <cstddef>

namespace hedgerow {

struct LowRankKernels {
  // y[i][j] = sum over k of a[k][i] * b[k][j]: a is (rank, rows), b (rank, columns), y (rows, columns), all contiguous.
  // In float32 from k = 0 on, each product and each sum rounded, so that every ISA gives the same bits.
  void (*product)(size_t rows, size_t columns, size_t rank, const float* a, const float* b, float* y);
};

}  // namespace hedgerow

#endif  // HEDGEROW_LOW_RANK_H_
