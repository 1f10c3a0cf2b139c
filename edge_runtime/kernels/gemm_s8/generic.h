// The packing and the loop nest, once. An ISA supplies
//   kRows, kColumns   a tile of c, whose sums stay in registers
//   kStep             how many neighbours in k one multiply-add takes: the group that both operands are interleaved by
//   kRowStep          tile heights come in multiples of this
//   Left              what an element of a is packed as: int8_t, or int16_t where the ISA only multiplies those
//   PackLeft          up to kRows rows of a, `depth` <= kDepth elements of each, padded to whole groups
//   Tile<rows>        c[r][n] = (or +=) the sums over `groups` groups, for kColumns columns
#ifndef HEDGEROW_GEMM_S8_GENERIC_H_
#define HEDGEROW_GEMM_S8_GENERIC_H_

#include <cstring>

#include "gemm_s8/gemm_s8.h"

#define HEDGEROW_UNROLL _Pragma("GCC unroll 32")

namespace hedgerow {
namespace {

// A strip of a, kRows x kDepth, stays in the first-level cache; the columns of b that it meets, in the second-level one.
constexpr size_t kDepth = 1024;
constexpr size_t kBlockBytes = size_t{128} << 10;

inline size_t Min(size_t a, size_t b) { return a < b ? a : b; }
inline size_t RoundUp(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Rows of s8 as [group of k][row][kStep]; rows past the last and elements past `depth` are zero.
template <size_t kRows, size_t kStep>
void Interleave(size_t rows, size_t depth, const int8_t* from, size_t stride, int8_t* to) {
  const size_t whole = depth / kStep;
  if (rows < kRows || depth % kStep) std::memset(to, 0, RoundUp(depth, kStep) * kRows);
  for (size_t r = 0; r < rows; ++r, from += stride, to += kStep) {
    for (size_t g = 0; g < whole; ++g) std::memcpy(to + g * kRows * kStep, from + g * kStep, kStep);
    for (size_t i = whole * kStep; i < depth; ++i) to[whole * kRows * kStep + i % kStep] = from[i];
  }
}

template <typename Isa>
using TileFunction = void (*)(size_t, const typename Isa::Left*, const int8_t*, int32_t*, size_t, bool);

template <typename Isa, size_t kTall = Isa::kRows>
TileFunction<Isa> TileOf(size_t rows) {
  if constexpr (kTall == Isa::kRowStep) {
    return Isa::template Tile<kTall>;
  } else {
    return rows == kTall ? Isa::template Tile<kTall> : TileOf<Isa, kTall - Isa::kRowStep>(rows);
  }
}

template <typename Isa>
size_t PackBytes(size_t n, size_t k) {
  return RoundUp(n, Isa::kColumns) * RoundUp(k, Isa::kStep);
}

template <typename Isa>
void Pack(size_t n, size_t k, const int8_t* b, int8_t* packed) {
  const size_t panel = Isa::kColumns * RoundUp(k, Isa::kStep);
  for (size_t column = 0; column < n; column += Isa::kColumns, packed += panel) {
    Interleave<Isa::kColumns, Isa::kStep>(Min(Isa::kColumns, n - column), k, b + column * k, k, packed);
  }
}

// A tile at c's right or lower edge: whole into `edge`, then what is c's into c.
template <typename Isa>
void EdgeTile(size_t groups, const typename Isa::Left* strip, const int8_t* panel, size_t rows, size_t columns,
              int32_t* c, size_t n, bool add) {
  int32_t edge[Isa::kRows * Isa::kColumns];
  TileOf<Isa>(RoundUp(rows, Isa::kRowStep))(groups, strip, panel, edge, Isa::kColumns, false);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < columns; ++i) {
      const uint32_t before = add ? static_cast<uint32_t>(c[r * n + i]) : 0;  // unsigned, for it may wrap
      c[r * n + i] = static_cast<int32_t>(before + static_cast<uint32_t>(edge[r * Isa::kColumns + i]));
    }
  }
}

template <typename Isa>
void Multiply(size_t m, size_t n, size_t k, const int8_t* a, const int8_t* packed, int32_t* c) {
  static_assert(kDepth % Isa::kStep == 0 && Isa::kRows % Isa::kRowStep == 0);
  constexpr size_t kBlockColumns = kBlockBytes / kDepth / Isa::kColumns * Isa::kColumns;
  alignas(64) typename Isa::Left strip[Isa::kRows * kDepth];
  const size_t padded = RoundUp(k, Isa::kStep);
  if (k == 0) {
    if (m * n != 0) std::memset(c, 0, m * n * sizeof *c);
    return;
  }
  for (size_t k0 = 0; k0 < k; k0 += kDepth) {
    const size_t depth = Min(kDepth, k - k0), groups = RoundUp(depth, Isa::kStep) / Isa::kStep;
    for (size_t n0 = 0; n0 < n; n0 += kBlockColumns) {
      const size_t end = Min(n, n0 + kBlockColumns);
      for (size_t m0 = 0; m0 < m; m0 += Isa::kRows) {
        const size_t rows = Min(Isa::kRows, m - m0);
        Isa::PackLeft(rows, depth, a + m0 * k + k0, k, strip);
        const TileFunction<Isa> tile = TileOf<Isa>(RoundUp(rows, Isa::kRowStep));
        for (size_t column = n0; column < end; column += Isa::kColumns) {
          const int8_t* panel = packed + column * padded + k0 * Isa::kColumns;
          int32_t* out = c + m0 * n + column;
          if (rows % Isa::kRowStep == 0 && end - column >= Isa::kColumns) {
            tile(groups, strip, panel, out, n, k0 != 0);
          } else {
            EdgeTile<Isa>(groups, strip, panel, rows, Min(Isa::kColumns, end - column), out, n, k0 != 0);
          }
        }
      }
    }
  }
}

template <typename Isa>
constexpr GemmS8Kernels MakeGemmS8Kernels() {
  return {PackBytes<Isa>, Pack<Isa>, Multiply<Isa>};
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_S8_GENERIC_H_
