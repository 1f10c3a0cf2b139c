// Sums of many elements whose error does not grow with how many there are: blocks of a few vectors are summed in
// float32, the blocks in double, lane by lane, and the lanes last. The order is fixed by the extents alone.
#ifndef HEDGEROW_ISA_SUMS_H_
#define HEDGEROW_ISA_SUMS_H_

#include "isa/simd.h"

namespace hedgerow {
namespace {

// Vectors of a block. One that ends inside a run of elements takes the rest of that run too, so up to twice as many.
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
  HEDGEROW_INLINE double operator[](Index lane) const { return lane < kWidth / 2 ? low[lane] : high[lane - kWidth / 2]; }
  HEDGEROW_INLINE double Total() const {
    Half both = low + high;
    double total = both[0];
    for (Index i = 1; i < kWidth / 2; ++i) total += both[i];
    return total;
  }

  Half low{}, high{};
};

// Lane by lane in a fixed order, in double.
HEDGEROW_INLINE double SumLanes(V v) {
  LaneSums sums;
  sums.Add(v);
  return sums.Total();
}

// kSums sums at once over `runs` runs of n elements; f(run, i, k, terms) sets terms[0] to terms[kSums - 1] to elements
// i to i + k - 1 of that run, and what stands in their lanes from k on does not matter.
template <int kSums, typename F>
HEDGEROW_INLINE void SumRuns(Index runs, Index n, double (&totals)[kSums], F f) {
  constexpr int kChains = kSums == 1 ? 4 : 2;  // of additions that do not wait for one another
  constexpr Index kStep = kChains * kWidth;
  LaneSums wide[kSums];
  V block[kSums][kChains] = {};
  Index used = 0;  // vectors in the block
  auto flush = [&] {
    for (int s = 0; s < kSums; ++s) {
      for (int c = kChains; c > 1; c /= 2) {
        for (int i = 0; i < c / 2; ++i) block[s][i] += block[s][i + c / 2];
      }
      wide[s].Add(block[s][0]);
      for (int c = 0; c < kChains; ++c) block[s][c] = V{};
    }
    used = 0;
  };
  for (Index run = 0; run < runs; ++run) {
    for (Index first = 0; first < n; first += kSumBlock * kWidth) {
      const Index end = Min(n, first + kSumBlock * kWidth);
      V terms[kSums];
      Index i = first;
      for (; i + kStep <= end; i += kStep) {
        for (int c = 0; c < kChains; ++c) {
          f(run, i + c * kWidth, kWidth, terms);
          for (int s = 0; s < kSums; ++s) block[s][c] += terms[s];
        }
      }
      for (; i + kWidth <= end; i += kWidth) {
        f(run, i, kWidth, terms);
        for (int s = 0; s < kSums; ++s) block[s][0] += terms[s];
      }
      if (i < end) {
        f(run, i, end - i, terms);
        for (int s = 0; s < kSums; ++s) block[s][1] += KeepFirst(terms[s], end - i);
      }
      used += (end - first + kWidth - 1) / kWidth;
      if (used >= kSumBlock) flush();
    }
  }
  flush();
  for (int s = 0; s < kSums; ++s) totals[s] = wide[s].Total();
}

// Sum of n elements; f(i, k) gives elements i to i + k - 1.
template <typename F>
HEDGEROW_INLINE double SumOf(Index n, F f) {
  double total[1];
  SumRuns(1, n, total, [&](Index, Index i, Index k, V (&terms)[1]) { terms[0] = f(i, k); });
  return total[0];
}

HEDGEROW_INLINE double Sum(Index n, const float* x) {
  return SumOf(n, [=](Index i, Index k) { return LoadPart(x + i, k); });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ISA_SUMS_H_
