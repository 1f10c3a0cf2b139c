// Panels of kTileVectors vectors of b's columns are packed on the stack, kDepth rows deep; a tile of c, kTileRows rows
// high, stays in registers while it walks down a panel.
#ifndef HEDGEROW_GEMM_GENERIC_H_
#define HEDGEROW_GEMM_GENERIC_H_

#include "gemm/gemm.h"
#include "isa/simd.h"
#include "program/call.h"

namespace hedgerow {
namespace {

constexpr Index kDepth = 256;
constexpr Index kTileRows = Isa::kTileRows;
constexpr Index kTileVectors = Isa::kTileVectors;
constexpr Index kTileColumns = kTileVectors * kWidth;

// A matrix read as [row][k] or [k][column]: element (i, k) stands at p[i * outer + k * inner].
struct Strided {
  const float* p;
  Index outer, inner;
};

// c tile += (or =) sum over `depth` of a's rows times the panel's; the panel has `stride` floats from row to row.
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

// b's elements (k, n) for k < depth and n < columns, columns padded with zeros to kTileColumns.
void PackPanel(Strided b, Index depth, Index columns, float* panel) {
  for (Index k = 0; k < depth; ++k) {
    float* out = panel + k * kTileColumns;
    for (Index n = 0; n < columns; ++n) out[n] = b.p[n * b.outer + k * b.inner];
    for (Index n = columns; n < kTileColumns; ++n) out[n] = 0;
  }
}

void Gemm(Form form, Index M, Index N, Index K, const float* a, Index lda, const float* b, Index ldb, Beta beta,
          float* c, Index ldc) {
  alignas(64) float panel[kDepth * kTileColumns];
  const Strided rows = form == Form::kTN ? Strided{a, 1, lda} : Strided{a, lda, 1};
  const Strided columns = form == Form::kNT ? Strided{b, ldb, 1} : Strided{b, 1, ldb};
  Index k = 0;
  do {
    const Index depth = Min(kDepth, K - k);
    for (Index n = 0; n < N; n += kTileColumns) {
      const Index width = Min(kTileColumns, N - n);
      PackPanel({columns.p + n * columns.outer + k * columns.inner, columns.outer, columns.inner}, depth, width, panel);
      for (Index m = 0; m < M; m += kTileRows) {
        const Strided strip{rows.p + m * rows.outer + k * rows.inner, rows.outer, rows.inner};
        TileOf<kTileRows>(Min(kTileRows, M - m))(depth, strip, panel, kTileColumns, beta, c + m * ldc + n, ldc, width);
      }
    }
    beta = Beta::kOne;
    k += depth;
  } while (k < K);
}

// Every row of c becomes b, or 0; a Gemm with Beta::kOne then adds to it.
void FillRows(Index M, Index N, const float* b, float* c, Index ldc) {
  for (Index m = 0; m < M; ++m) b ? CopyFloats(N, b, c + m * ldc) : Zero(N, c + m * ldc);
}

// c = a w^T + b
void Affine(Index M, Index N, Index K, const float* a, Index lda, const float* w, const float* b, float* c, Index ldc) {
  if (b) FillRows(M, N, b, c, ldc);
  Gemm(Form::kNT, M, N, K, a, lda, w, K, b ? Beta::kOne : Beta::kZero, c, ldc);
}

Status linear(const Call& call) {
  const Index M = call.size(0), N = call.size(1), K = call.size(2);
  Affine(M, N, K, call.f32(0), K, call.f32(1), call.f32(2), call.f32(3), N);
  return kOk;
}

Status linear_dx(const Call& call) {
  const Index M = call.size(0), N = call.size(1), K = call.size(2);
  Gemm(Form::kNN, M, K, N, call.f32(0), N, call.f32(1), K, Beta::kZero, call.f32(2), K);
  return kOk;
}

Status linear_dw(const Call& call) {
  const Index M = call.size(0), N = call.size(1), K = call.size(2);
  Gemm(Form::kTN, N, K, M, call.f32(0), N, call.f32(1), K, Beta::kZero, call.f32(2), K);
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_GENERIC_H_
