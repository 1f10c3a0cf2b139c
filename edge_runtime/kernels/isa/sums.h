// Sums of many elements whose error does not grow with how many there are: blocks of a few vectors are summed in
// float32, the blocks in double, lane by lane, and the lanes last. The order is fixed by the extents alone.
#ifndef HEDGEROW_ISA_SUMS_H_
#define HEDGEROW_ISA_SUMS_H_

#include "isa/simd.h"

namespace hedgerow {
namespace {

// Vectors of a block; where a run of elements ends inside one it may get the rest of that run too: nearly twice as many.
constexpr Index kSumBlock = 16;

// A double for each lane, in two vectors of the CPU's own width.
struct LaneSums {
  using Half = double __attribute__((vector_size(Isa::kWidth * 4)));
  using Wide = double __attribute__((vector_size(Isa::kWidth * 8)));

  HEDGEROW_INLINE void Add(V v) {
    const Wide wide = __builtin_convertvector(v, Wide);
    Half a, b;
    for (Index i = 0; i < kWidth / 2; ++i) {
      a[i] = wide[i];
      b[i] = wide[kWidth / 2 + i];
    }
    low += a;
    high += b;
  }
  HEDGEROW_INLINE double operator[](Index lane) const {
    return lane < kWidth / 2 ? low[lane] : high[lane - kWidth / 2];
  }
  HEDGEROW_INLINE double Total() const {
    Half both = low + high;
    double total = both[0];
    for (Index i = 1; i < kWidth / 2; ++i) total += both[i];
    return total;
  }

  Half low{}, high{};
};

// Sums of products on their way through many places, one for each tap and lane: in float32 for kBlock products (or
// those of one Make, if they are more), the blocks in double.
template <Index kMostTaps>
struct TapBlocks {
  static constexpr Index kBlock = 128;

  void Clear(Index n) {
    taps = n;
    for (Index t = 0; t < taps; ++t) total[t] = LaneSums();
    Empty();
  }
  // Before `count` more products in each lane are added to `block`.
  HEDGEROW_INLINE void Make(Index count) {
    if (used + count > kBlock) Flush();
    used += count;
  }
  void Flush() {
    for (Index t = 0; t < taps; ++t) total[t].Add(block[t]);
    Empty();
  }

  Index taps;
  LaneSums total[kMostTaps];
  V block[kMostTaps];
  Index used;

 private:
  void Empty() {
    for (Index t = 0; t < taps; ++t) block[t] = V{};
    used = 0;
  }
};

// Lane by lane in a fixed order, in double.
HEDGEROW_INLINE double SumLanes(V v) {
  LaneSums sums;
  sums.Add(v);
  return sums.Total();
}

// Sum of n elements; f(i, k) gives elements i to i + k - 1, and what stands in its lanes from k on does not matter.
template <typename F>
HEDGEROW_INLINE double SumOf(Index n, F f) {
  LaneSums total;
  for (Index i = 0; i < n;) {
    const Index end = Min(n, i + kSumBlock * kWidth);
    V a{}, b{}, c{}, d{};  // four chains of additions instead of one to wait for
    for (; i + 4 * kWidth <= end; i += 4 * kWidth) {
      a += f(i, kWidth);
      b += f(i + kWidth, kWidth);
      c += f(i + 2 * kWidth, kWidth);
      d += f(i + 3 * kWidth, kWidth);
    }
    for (; i + kWidth <= end; i += kWidth) a += f(i, kWidth);
    if (i < end) b += KeepFirst(f(i, end - i), end - i);
    i = end;
    total.Add((a + b) + (c + d));
  }
  return total.Total();
}

HEDGEROW_INLINE double Sum(Index n, const float* x) {
  return SumOf(n, [=](Index i, Index k) HEDGEROW_INLINE_BODY { return LoadPart(x + i, k); });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ISA_SUMS_H_
