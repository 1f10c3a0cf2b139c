// c = beta c + a b^T as dot products of rows: nothing is packed, but every element of c ends in a sum across lanes, so
// it pays where K is many times M.
#ifndef HEDGEROW_GEMM_DOT_H_
#define HEDGEROW_GEMM_DOT_H_

#include "gemm/gemm.h"
#include "isa/transpose.h"

namespace hedgerow {
namespace {

constexpr Index kDotDepthPerRow = 16;
// A lane sums this many products at most before the sum is added to c.
constexpr Index kDotBlock = 256 * kWidth;

// Rows of a by kDotColumns rows of b.
constexpr Index kDotRows = 3, kDotColumns = 4;

template <Index kRows>
void DotTile(Index depth, const float* a, Index lda, const float* b, Index ldb, Index columns, Beta beta, float* c,
             Index ldc) {
  const float* other[kDotColumns];  // past the last column the last one again: its sums are not stored
  for (Index n = 0; n < kDotColumns; ++n) other[n] = b + Min(n, columns - 1) * ldb;
  V sum[kRows][kDotColumns] = {};
  auto step = [&](Index k, Index left) {
    V x[kRows];
    for (Index r = 0; r < kRows; ++r) x[r] = LoadPart(a + r * lda + k, left);
    for (Index n = 0; n < kDotColumns; ++n) {
      const V y = LoadPart(other[n] + k, left);
      for (Index r = 0; r < kRows; ++r) sum[r][n] += x[r] * y;
    }
  };
  Index k = 0;
  for (; k + kWidth <= depth; k += kWidth) step(k, kWidth);
  if (k < depth) step(k, depth - k);
  for (Index r = 0; r < kRows; ++r) {
    V rows[kWidth] = {};
    for (Index n = 0; n < kDotColumns; ++n) rows[n] = sum[r][n];
    const V sums = SumEach(rows);
    for (Index n = 0; n < columns; ++n) {
      float& out = c[r * ldc + n];
      out = beta == Beta::kOne ? out + sums[n] : sums[n];
    }
  }
}

void GemmByDots(Index M, Index N, Index K, const float* a, Index lda, const float* b, Index ldb, Beta beta, float* c,
                Index ldc) {
  for (Index k = 0; k < K; k += kDotBlock, beta = Beta::kOne) {
    const Index depth = Min(kDotBlock, K - k);
    for (Index n = 0; n < N; n += kDotColumns) {
      const Index columns = Min(kDotColumns, N - n);
      for (Index m = 0; m < M; m += kDotRows) {
        const Index rows = Min(kDotRows, M - m);
        (rows == 3 ? DotTile<3> : rows == 2 ? DotTile<2> : DotTile<1>)(
            depth, a + m * lda + k, lda, b + n * ldb + k, ldb, columns, beta, c + m * ldc + n, ldc);
      }
    }
  }
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_DOT_H_
