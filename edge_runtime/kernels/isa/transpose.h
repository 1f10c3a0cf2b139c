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

HEDGEROW_INLINE void Transpose(V (&rows)[kWidth]) {
  SwapBlocks<1>(rows);
  SwapBlocks<2>(rows);
  if constexpr (kWidth == 8) SwapBlocks<4>(rows);
}

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
