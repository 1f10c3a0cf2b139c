// Gemm's loops. Which of four ways a product goes depends on its extents alone, so that a team may share its rows or
// its columns without changing a bit:
//   dots     b transposed, few rows of c and deep: dot products of rows of a and b
//   vector   one row of c, b not transposed: b is read once, row by row
//   in place few rows of c, or shallow: tiles read b where it stands
//   packed   all others: a block of b's columns is packed on the stack in panels, kDepth rows deep at most
// A tile of c, kTileRows rows high, stays in registers while it walks down a panel.
#ifndef HEDGEROW_GEMM_GENERIC_H_
#define HEDGEROW_GEMM_GENERIC_H_

#include "gemm/dot.h"
#include "gemm/gemm.h"
#include "gemm/pack.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

// Floats of packed panels, and of a's rows that meet them before the next rows do.
constexpr Index kPackedFloats = 64 * kDepth;
constexpr Index kRowsFloats = 24 * kDepth;

// A matrix read as [row][k]: element (row, k) stands at p[row * outer + k * inner].
struct Strided {
  const float* p;
  Index outer, inner;
  Strided From(Index row, Index k) const { return {p + row * outer + k * inner, outer, inner}; }
};

// What a product's part in one block of depth ends with: c is added to if `add`, else it starts from `bias`, one for
// each column, or 0.
struct BlockEnd {
  bool add;
  const float* bias;
  Index act;
  BlockEnd From(Index column) const { return {add, bias ? bias + column : nullptr, act}; }
};

// c tile from the sums over `depth` of a's rows times the panel's; the panel has `stride` floats from row to row, of
// which kTileColumns are read.
template <Index kRows>
void Tile(Index depth, Strided a, const float* panel, Index stride, const BlockEnd& end, float* c, Index ldc,
          Index columns) {
  V sum[kRows][kTileVectors] = {};
  for (Index k = 0; k < depth; ++k) {
    V b[kTileVectors];
    for (Index v = 0; v < kTileVectors; ++v) b[v] = Load(panel + k * stride + v * kWidth);
    const float* x = a.p + k * a.inner;
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
      HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) sum[r][v] += x[r * a.outer] * b[v];
    }
  }
  Index left[kTileVectors];
  for (Index v = 0; v < kTileVectors; ++v) left[v] = Max(0, Min(kWidth, columns - v * kWidth));
  if (end.add) {
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
      HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) {
        if (left[v] > 0) sum[r][v] += LoadPart(c + r * ldc + v * kWidth, left[v]);
      }
    }
  } else if (end.bias) {
    HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) {
      if (left[v] == 0) break;
      const V bias = LoadPart(end.bias + v * kWidth, left[v]);
      HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) sum[r][v] += bias;
    }
  }
  if (end.act != 0) {
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
      HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) sum[r][v] = Activated(end.act, sum[r][v]);
    }
  }
  if (columns >= kTileColumns) {
    HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
      HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) Store(c + r * ldc + v * kWidth, sum[r][v]);
    }
    return;
  }
  HEDGEROW_UNROLL for (Index r = 0; r < kRows; ++r) {
    HEDGEROW_UNROLL for (Index v = 0; v < kTileVectors; ++v) {
      if (left[v] > 0) StorePart(c + r * ldc + v * kWidth, sum[r][v], left[v]);
    }
  }
}

using TileFunction = void (*)(Index, Strided, const float*, Index, const BlockEnd&, float*, Index, Index);

template <Index kRows>
HEDGEROW_INLINE TileFunction TileOf(Index rows) {
  if constexpr (kRows == 1) {
    return Tile<1>;
  } else {
    return rows == kRows ? Tile<kRows> : TileOf<kRows - 1>(rows);
  }
}

// One product, or the part of it in some rows and columns: a as [m][k] and b as [k][n] in place, unless `transposed`,
// then b is [n][k].
struct Product {
  Index M, N, K;
  Strided a;
  const float* b;
  Index ldb;
  bool transposed;
  GemmEnd end;
  Beta beta;
  float* c;
  Index ldc;

  Product Part(Index m, Index rows, Index n, Index columns) const {
    Product part = *this;
    part.M = rows;
    part.N = columns;
    part.a = a.From(m, 0);
    part.b = b + n * (transposed ? ldb : 1);
    if (end.bias) part.end.bias = end.bias + n;
    part.c = c + m * ldc + n;
    return part;
  }
  BlockEnd Block(Index k, Index depth) const {
    return {k > 0 || beta == Beta::kOne, end.bias, k + depth == K ? end.act : 0};
  }
};

void InPlace(const Product& p) {
  alignas(64) float edge[kDepth * kTileColumns];
  const Index whole = p.N / kTileColumns * kTileColumns;
  const Index part = EvenPart(p.K, kDepth);
  Index k = 0;
  do {
    const Index depth = Min(part, p.K - k);
    const BlockEnd end = p.Block(k, depth);
    const float* b = p.b + k * p.ldb;
    if (whole < p.N) PackRows(b + whole, p.ldb, depth, p.N - whole, edge);
    ForStrips(p.M, [&](Index m, Index rows) {
      const TileFunction tile = TileOf<kTileRows>(rows);
      const Strided a = p.a.From(m, k);
      float* c = p.c + m * p.ldc;
      for (Index n = 0; n < whole; n += kTileColumns) {
        tile(depth, a, b + n, p.ldb, end.From(n), c + n, p.ldc, kTileColumns);
      }
      if (whole < p.N) tile(depth, a, edge, kTileColumns, end.From(whole), c + whole, p.ldc, p.N - whole);
    });
    k += depth;
  } while (k < p.K);
}

// Strips of a's rows for a tile that wants them packed: [k][kTileRows], zeros where the strip has fewer rows.
inline void PackStrips(const Strided& a, Index rows, Index depth, float* to) {
  ForStrips(rows, [&](Index m, Index strip) {
    for (Index k = 0; k < depth; ++k, to += kTileRows) {
      const float* from = a.p + m * a.outer + k * a.inner;
      for (Index r = 0; r < kTileRows; ++r) to[r] = r < strip ? from[r * a.outer] : 0.f;
    }
  });
}

inline void FinishColumns(Index rows, const float* sums, const BlockEnd& end, float* c, Index ldc, Index columns) {
  for (Index r = 0; r < rows; ++r, sums += kTileColumns, c += ldc) {
    ForVectors(columns, [&](Index j, Index k) {
      const V before = end.add ? LoadPart(c + j, k) : end.bias ? LoadPart(end.bias + j, k) : V{};
      StorePart(c + j, Activated(end.act, before + Load(sums + j)), k);
    });
  }
}

template <typename TileIsa>
void Packed(const Product& p) {
  alignas(64) float packed[kPackedFloats];
  alignas(64) float rows_packed[TileIsa::kPacks ? kRowsFloats + kTileRows * kDepth : 1];
  const Index part = EvenPart(p.K, kDepth);
  Index k = 0;
  do {
    const Index depth = Min(part, p.K - k);
    const BlockEnd end = p.Block(k, depth);
    const Index block = kPackedFloats / Max(1, depth) / kTileColumns * kTileColumns;
    const Index block_rows = Max(1, kRowsFloats / Max(1, depth) / kTileRows) * kTileRows;
    for (Index n = 0; n < p.N; n += block) {
      const Index columns = Min(block, p.N - n);
      for (Index j = 0; j < columns; j += kTileColumns) {
        const Index width = Min(kTileColumns, columns - j);
        if (p.transposed) {
          PackTransposed(p.b + (n + j) * p.ldb + k, p.ldb, depth, width, packed + j * depth);
        } else {
          PackRows(p.b + k * p.ldb + n + j, p.ldb, depth, width, packed + j * depth);
        }
      }
      for (Index first = 0; first < p.M; first += block_rows) {
        const Index rows_here = Min(block_rows, p.M - first);
        if constexpr (TileIsa::kPacks) PackStrips(p.a.From(first, k), rows_here, depth, rows_packed);
        for (Index j = 0; j < columns; j += kTileColumns) {
          const Index width = Min(kTileColumns, columns - j);
          const float* strip = rows_packed;
          ForStrips(rows_here, [&](Index m, Index rows) {
            float* c = p.c + (first + m) * p.ldc + n + j;
            if constexpr (TileIsa::kPacks) {
              alignas(64) float sums[kTileRows * kTileColumns];
              TileIsa::PackedTile(depth, strip, packed + j * depth, sums);
              FinishColumns(rows, sums, end.From(n + j), c, p.ldc, width);
              strip += kTileRows * depth;
            } else {
              TileOf<kTileRows>(rows)(depth, p.a.From(first + m, k), packed + j * depth, kTileColumns, end.From(n + j),
                                      c, p.ldc, width);
            }
          });
        }
      }
    }
    k += depth;
  } while (k < p.K);
}

// One row of c. Eight rows of b at a time go into sums of up to kDepth products, and those into c.
void OneRow(const Product& p) {
  constexpr Index kColumns = 512;
  alignas(64) float sums[kColumns];
  for (Index n = 0; n < p.N; n += kColumns) {
    const Index columns = Min(kColumns, p.N - n);
    Index first = 0;
    do {
      const Index depth = Min(kDepth, p.K - first);
      const BlockEnd end = p.Block(first, depth).From(n);
      Zero(columns, sums);
      const float *a = p.a.p + first * p.a.inner, *b = p.b + first * p.ldb + n;
      Index k = 0;
      for (; k + 8 <= depth; k += 8, a += 8 * p.a.inner, b += 8 * p.ldb) {
        ForVectors(columns, [&](Index j, Index left) {
          V sum = Load(sums + j);
          HEDGEROW_UNROLL for (Index i = 0; i < 8; ++i) sum += a[i * p.a.inner] * LoadPart(b + i * p.ldb + j, left);
          Store(sums + j, sum);
        });
      }
      for (; k < depth; ++k, a += p.a.inner, b += p.ldb) {
        ForVectors(columns, [&](Index j, Index left) {
          Store(sums + j, Load(sums + j) + a[0] * LoadPart(b + j, left));
        });
      }
      ForVectors(columns, [&](Index j, Index left) {
        float* c = p.c + n + j;
        const V before = end.add ? LoadPart(c, left) : end.bias ? LoadPart(end.bias + j, left) : V{};
        StorePart(c, Activated(end.act, before + Load(sums + j)), left);
      });
      first += depth;
    } while (first < p.K);
  }
}

void Dots(const Product& p) {
  GemmByDots(p.M, p.N, p.K, p.a.p, p.a.outer, p.b, p.ldb, p.beta, p.end.bias, p.end.act, p.c, p.ldc);
}

using Way = void (*)(const Product&);

Way WayOf(Form form, Index M, Index K) {
  if (form == Form::kNT) return K >= kDotDepthPerRow * M ? Dots : Packed<Isa>;
  if (M == 1) return OneRow;
  return M <= 3 * kTileRows || K <= 16 ? InPlace : Packed<Isa>;
}

// Shared by `call`'s team where that is not nullptr.
void Gemm(const Call* call, Form form, Index M, Index N, Index K, const float* a, Index lda, const float* b, Index ldb,
          Beta beta, float* c, Index ldc, GemmEnd end) {
  const Strided rows = form == Form::kTN ? Strided{a, 1, lda} : Strided{a, lda, 1};
  const Product p{M, N, K, rows, b, ldb, form == Form::kNT, end, beta, c, ldc};
  const Way way = WayOf(form, M, K);
  if (call == nullptr) return way(p);
  const Index panels = (N + kTileColumns - 1) / kTileColumns, strips = (M + kTileRows - 1) / kTileRows;
  if (strips > panels) {
    const double ns = kNsPerMultiplication * kTileRows * static_cast<double>(N * K);
    ForRanges(*call, strips, ns, 1, [=](Index first, Index last) {
      const Index m = first * kTileRows;
      way(p.Part(m, Min(M, last * kTileRows) - m, 0, N));
    });
  } else {
    const double ns = kNsPerMultiplication * kTileColumns * static_cast<double>(M * K);
    ForRanges(*call, panels, ns, 1, [=](Index first, Index last) {
      const Index n = first * kTileColumns;
      way(p.Part(0, M, n, Min(N, last * kTileColumns) - n));
    });
  }
}

void Gemm(Form form, Index M, Index N, Index K, const float* a, Index lda, const float* b, Index ldb, Beta beta,
          float* c, Index ldc, GemmEnd end = {}) {
  Gemm(nullptr, form, M, N, K, a, lda, b, ldb, beta, c, ldc, end);
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_GENERIC_H_
