// Panels of b for Gemm: kTileColumns columns side by side, padded with zeros, one row for each k.
#ifndef HEDGEROW_GEMM_PACK_H_
#define HEDGEROW_GEMM_PACK_H_

#include "gemm/tile.h"
#include "isa/transpose.h"

namespace hedgerow {
namespace {

// From b[k][n].
void PackRows(const float* b, Index ldb, Index depth, Index columns, float* panel) {
  for (Index k = 0; k < depth; ++k) {
    for (Index v = 0; v < kTileVectors; ++v) {
      const Index left = Max(0, Min(kWidth, columns - v * kWidth));
      Store(panel + k * kTileColumns + v * kWidth, LoadPart(b + k * ldb + v * kWidth, left));
    }
  }
}

// From b[n][k].
void PackTransposed(const float* b, Index ldb, Index depth, Index columns, float* panel) {
  for (Index v = 0; v < kTileVectors; ++v) {
    const float* from = b + v * kWidth * ldb;
    float* to = panel + v * kWidth;
    const Index rows = Max(0, Min(kWidth, columns - v * kWidth));
    for (Index k = 0; k < depth; k += kWidth) {
      const Index left = Min(kWidth, depth - k);
      V block[kWidth];
      for (Index i = 0; i < kWidth; ++i) block[i] = i < rows ? LoadPart(from + i * ldb + k, left) : V{};
      Transpose(block);
      for (Index i = 0; i < left; ++i) Store(to + (k + i) * kTileColumns, block[i]);
    }
  }
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_PACK_H_
