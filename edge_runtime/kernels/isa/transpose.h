// kWidth vectors as a square matrix, transposed in registers.
#ifndef HEDGEROW_ISA_TRANSPOSE_H_
#define HEDGEROW_ISA_TRANSPOSE_H_

#include "isa/simd.h"

namespace hedgerow {
namespace {

// Lane i is lane from[i] of a and b behind one another.
HEDGEROW_INLINE V Shuffle(V a, V b, VI from) {
#if defined(__clang__)
  V out;
  for (Index i = 0; i < kWidth; ++i) out[i] = from[i] < kWidth ? a[from[i]] : b[from[i] - kWidth];
  return out;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// Pairs of rows swap blocks of kStep x kStep: after steps 1, 2, 4 ... every element is in place.
template <int kStep>
HEDGEROW_INLINE void SwapBlocks(V (&rows)[kWidth]) {
  VI low, high;  // lanes of the two rows behind one another
  for (int i = 0; i < kWidth; ++i) {
    const bool second = (i / kStep) % 2 != 0;
    low[i] = second ? static_cast<int>(kWidth) + i - kStep : i;
    high[i] = second ? static_cast<int>(kWidth) + i : i + kStep;
  }
  for (Index i = 0; i < kWidth; ++i) {
    if ((i / kStep) % 2 != 0) continue;
    const V a = rows[i], b = rows[i + kStep];
    rows[i] = Shuffle(a, b, low);
    rows[i + kStep] = Shuffle(a, b, high);
  }
}

// Four rows as 4 x 4 squares, one in each four lanes: the shuffles that CPUs have a single instruction for.
HEDGEROW_INLINE void TransposeSquares(V (&rows)[kWidth], Index first) {
  VI low, high, left, right;
  for (int i = 0; i < kWidth; ++i) {
    const int lane = i % 4, square = i - lane, other = static_cast<int>(kWidth);
    low[i] = square + lane / 2 + lane % 2 * other;
    high[i] = low[i] + 2;
    left[i] = square + lane % 2 + lane / 2 * other;
    right[i] = left[i] + 2;
  }
  V* row = rows + first;
  const V a = Shuffle(row[0], row[1], low), b = Shuffle(row[0], row[1], high);
  const V c = Shuffle(row[2], row[3], low), d = Shuffle(row[2], row[3], high);
  row[0] = Shuffle(a, c, left);
  row[1] = Shuffle(a, c, right);
  row[2] = Shuffle(b, d, left);
  row[3] = Shuffle(b, d, right);
}

HEDGEROW_INLINE void Transpose(V (&rows)[kWidth]) {
  for (Index first = 0; first < kWidth; first += 4) TransposeSquares(rows, first);
  if constexpr (kWidth == 8) SwapBlocks<4>(rows);
}

// Lanes of two vectors by turns: the first half of the result, and the second.
struct Pairs {
  Pairs() {
    for (int i = 0; i < kWidth; ++i) {
      low[i] = i / 2 + i % 2 * static_cast<int>(kWidth);
      high[i] = low[i] + static_cast<int>(kWidth) / 2;
    }
  }
  VI low, high;
};

// Lane i of the result is the sum of rows[i]'s lanes.
HEDGEROW_INLINE V SumEach(V (&rows)[kWidth]) {
  Transpose(rows);
  for (Index step = kWidth / 2; step > 0; step /= 2) {
    for (Index i = 0; i < step; ++i) rows[i] += rows[i + step];
  }
  return rows[0];
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ISA_TRANSPOSE_H_
