// c = beta c + a b^T as dot products of rows: nothing is packed, but every element of c ends in a sum across lanes, so
// it pays where K is many times M.
#ifndef HEDGEROW_GEMM_DOT_H_
#define HEDGEROW_GEMM_DOT_H_

#include "gemm/gemm.h"
#include "gemm/tile.h"
#include "isa/transpose.h"

namespace hedgerow {
namespace {

constexpr Index kDotDepthPerRow = 16;
// A lane sums this many products at most before the sum is added to c.
constexpr Index kDotBlock = 256 * kWidth;

// kRows rows of a by kColumns rows of b, of which `columns` count.
template <Index kRows, Index kColumns>
void DotTile(Index depth, const float* a, Index lda, const float* b, Index ldb, Index columns, bool add,
             const float* bias, Index act, float* c, Index ldc) {
  const float* other[kColumns];  // past the last column the last one again: its sums are not stored
  for (Index n = 0; n < kColumns; ++n) other[n] = b + Min(n, columns - 1) * ldb;
  V sum[kRows][kColumns] = {};
  auto step = [&](Index k, Index left) __attribute__((always_inline)) {
    V x[kRows];
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) x[r] = LoadPart(a + r * lda + k, left);
    HEDGEROW_UNROLL for (Index n = 0; n < kColumns; ++n) {
      const V y = LoadPart(other[n] + k, left);
      HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) sum[r][n] += x[r] * y;
    }
  };
  Index k = 0;
  for (; k + kWidth <= depth; k += kWidth) step(k, kWidth);
  if (k < depth) step(k, depth - k);
  HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
    HEDGEROW_UNROLL for (Index n = 0; n < kColumns; n += kWidth) {
      constexpr Index kMost = kColumns < kWidth ? kColumns : kWidth;
      V rows[kWidth] = {};
      HEDGEROW_UNROLL for (Index i = 0; i < kMost; ++i) rows[i] = sum[r][n + i];
      const V sums = SumEach(rows);
      auto finish = [&](Index left) __attribute__((always_inline)) {
        float* out = c + r * ldc + n;
        const V before = add ? LoadPart(out, left) : bias ? LoadPart(bias + n, left) : V{};
        StorePart(out, Activated(act, before + sums), left);
      };
      if (columns == kColumns) {
        finish(kMost);
      } else if (n < columns) {
        finish(Min(kMost, columns - n));
      }
    }
  }
}

template <Index kColumns>
void DotRows(Index rows, Index depth, const float* a, Index lda, const float* b, Index ldb, Index columns, bool add,
             const float* bias, Index act, float* c, Index ldc) {
  (rows == 3 ? DotTile<3, kColumns> : rows == 2 ? DotTile<2, kColumns> : DotTile<1, kColumns>)(
      depth, a, lda, b, ldb, columns, add, bias, act, c, ldc);
}

void GemmByDots(Index M, Index N, Index K, const float* a, Index lda, const float* b, Index ldb, Beta beta,
                const float* bias, Index act, float* c, Index ldc) {
  constexpr Index kRows = 3;
  // One row has registers for more columns.
  const Index most = M == 1 ? 8 : 4;
  for (Index k = 0; k < K; k += kDotBlock) {
    const Index depth = Min(kDotBlock, K - k);
    const bool add = k > 0 || beta == Beta::kOne;
    const Index last_act = k + depth == K ? act : 0;
    for (Index n = 0; n < N; n += most) {
      const Index columns = Min(most, N - n);
      for (Index m = 0; m < M; m += kRows) {
        (most == 8 ? DotRows<8> : DotRows<4>)(Min(kRows, M - m), depth, a + m * lda + k, lda, b + n * ldb + k, ldb,
                                              columns, add, bias ? bias + n : nullptr, last_act, c + m * ldc + n, ldc);
      }
    }
  }
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_DOT_H_
