#ifndef HEDGEROW_LOW_RANK_GENERIC_H_
#define HEDGEROW_LOW_RANK_GENERIC_H_

#include "low_rank/low_rank.h"

namespace hedgerow {
namespace {

constexpr size_t kLowRankBlock = 32;  // columns whose sums stay in registers

void LowRankProduct(size_t rows, size_t columns, size_t rank, const float* a, const float* b, float* y) {
  // A block of b's columns serves all rows while it is in the cache.
  for (size_t first = 0; first < columns; first += kLowRankBlock) {
    const size_t width = columns - first < kLowRankBlock ? columns - first : kLowRankBlock;
    for (size_t i = 0; i < rows; ++i) {
      float sum[kLowRankBlock] = {};
      if (width == kLowRankBlock) {
        for (size_t k = 0; k < rank; ++k) {
          const float factor = a[k * rows + i];
          const float* row = b + k * columns + first;
          for (size_t j = 0; j < kLowRankBlock; ++j) sum[j] += factor * row[j];
        }
      } else {
        for (size_t k = 0; k < rank; ++k) {
          const float factor = a[k * rows + i];
          const float* row = b + k * columns + first;
          for (size_t j = 0; j < width; ++j) sum[j] += factor * row[j];
        }
      }
      for (size_t j = 0; j < width; ++j) y[i * columns + first + j] = sum[j];
    }
  }
}

constexpr LowRankKernels kLowRank = {LowRankProduct};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_LOW_RANK_GENERIC_H_
