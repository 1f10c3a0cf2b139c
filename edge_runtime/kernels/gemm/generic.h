// Gemm's loops. Panels of kTileVectors vectors of b's columns are packed on the stack, kDepth rows deep; a tile of c,
// kTileRows rows high, stays in registers while it walks down a panel. Two cases need no packing: few rows of c, for
// which b is read where it stands, and short, deep products with b transposed, which are dot products.
#ifndef HEDGEROW_GEMM_GENERIC_H_
#define HEDGEROW_GEMM_GENERIC_H_

#include "gemm/dot.h"
#include "gemm/gemm.h"
#include "gemm/pack.h"
#include "program/call.h"

namespace hedgerow {
namespace {

// A matrix read as [row][k]: element (row, k) stands at p[row * outer + k * inner].
struct Strided {
  const float* p;
  Index outer, inner;
};

// c tile += (or =) sum over `depth` of a's rows times the panel's; the panel has `stride` floats from row to row, of
// which kTileColumns are read.
template <Index kRows>
void Tile(Index depth, Strided a, const float* panel, Index stride, Beta beta, float* c, Index ldc, Index columns) {
  V sum[kRows][kTileVectors] = {};
  for (Index k = 0; k < depth; ++k) {
    V b[kTileVectors];
    for (Index v = 0; v < kTileVectors; ++v) b[v] = Load(panel + k * stride + v * kWidth);
    for (Index r = 0; r < kRows; ++r) {
      const float x = a.p[r * a.outer + k * a.inner];
      for (Index v = 0; v < kTileVectors; ++v) sum[r][v] += x * b[v];
    }
  }
  for (Index r = 0; r < kRows; ++r) {
    for (Index v = 0; v < kTileVectors; ++v) {
      const Index left = Min(kWidth, columns - v * kWidth);
      if (left <= 0) break;
      float* out = c + r * ldc + v * kWidth;
      StorePart(out, beta == Beta::kOne ? LoadPart(out, left) + sum[r][v] : sum[r][v], left);
    }
  }
}

using TileFunction = void (*)(Index, Strided, const float*, Index, Beta, float*, Index, Index);

template <Index kRows>
HEDGEROW_INLINE TileFunction TileOf(Index rows) {
  if constexpr (kRows == 1) {
    return Tile<1>;
  } else {
    return rows == kRows ? Tile<kRows> : TileOf<kRows - 1>(rows);
  }
}

void Gemm(Form form, Index M, Index N, Index K, const float* a, Index lda, const float* b, Index ldb, Beta beta,
          float* c, Index ldc) {
  if (form == Form::kNT && K >= kDotDepthPerRow * M) return GemmByDots(M, N, K, a, lda, b, ldb, beta, c, ldc);
  alignas(64) float packed[kDepth * kTileColumns];
  const Strided rows = form == Form::kTN ? Strided{a, 1, lda} : Strided{a, lda, 1};
  const bool in_place = form != Form::kNT && M <= 3 * kTileRows;
  Index k = 0;
  do {
    const Index depth = Min(kDepth, K - k);
    for (Index n = 0; n < N; n += kTileColumns) {
      const Index width = Min(kTileColumns, N - n);
      const float* panel = packed;
      Index stride = kTileColumns;
      if (form == Form::kNT) {
        PackTransposed(b + n * ldb + k, ldb, depth, width, packed);
      } else if (in_place && width == kTileColumns) {
        panel = b + k * ldb + n;
        stride = ldb;
      } else {
        PackRows(b + k * ldb + n, ldb, depth, width, packed);
      }
      for (Index m = 0; m < M; m += kTileRows) {
        const Strided strip{rows.p + m * rows.outer + k * rows.inner, rows.outer, rows.inner};
        TileOf<kTileRows>(Min(kTileRows, M - m))(depth, strip, panel, stride, beta, c + m * ldc + n, ldc, width);
      }
    }
    beta = Beta::kOne;
    k += depth;
  } while (k < K);
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_GENERIC_H_
