// Two vectors' lanes in turn, as a stride of 2 reads and writes them.
#ifndef HEDGEROW_ISA_DEAL_H_
#define HEDGEROW_ISA_DEAL_H_

#include "isa/transpose.h"

namespace hedgerow {
namespace {

HEDGEROW_INLINE V Evens(V a, V b) {
  VI from;
  for (int i = 0; i < kWidth; ++i) from[i] = 2 * i;
  return Shuffle(a, b, from);
}
HEDGEROW_INLINE V Odds(V a, V b) {
  VI from;
  for (int i = 0; i < kWidth; ++i) from[i] = 2 * i + 1;
  return Shuffle(a, b, from);
}
// n of 2 kWidth floats, n > kWidth.
HEDGEROW_INLINE void StoreInTurn(V evens, V odds, Index n, float* y) {
  const Pairs pairs;
  Store(y, Shuffle(evens, odds, pairs.low));
  StorePart(y + kWidth, Shuffle(evens, odds, pairs.high), n - kWidth);
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ISA_DEAL_H_
