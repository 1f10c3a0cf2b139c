// Work over n items cut into ranges for the threads of a team.
#ifndef HEDGEROW_PROGRAM_RANGES_H_
#define HEDGEROW_PROGRAM_RANGES_H_

#include "isa/index.h"
#include "program/call.h"

namespace hedgerow {
namespace {

// Below this a thread would cost more to wake than it does; and a few ranges for each thread let a slow one take fewer.
constexpr double kLeastTaskNs = 25'000;
constexpr Index kRangesPerThread = 4;
// What the items of a matrix product take.
constexpr double kNsPerMultiplication = 1 / 35.;

// One range. A function of its own, so that there is one copy of f's code: in two, a compiler that may fuse a multiply
// and an add is free to choose differently, and the bits would tell how many threads there were.
template <typename F>
__attribute__((noinline)) void DoRange(const F& f, Index first, Index last) {
  const F own = f;
  own(first, last);
}

// f(first, one past the last) for ranges that together are [0, n), each but the last a multiple of `step` long. An item
// takes about item_ns on a fast core. Ranges run on any thread, so f writes nothing that two of them share. It should
// hold copies, not references: each range has a copy of f to itself, and so the compiler knows that nothing which is
// stored through a pointer changes what f holds.
template <typename F>
HEDGEROW_INLINE void ForRanges(const Call& call, Index n, double item_ns, Index step, F f) {
  const Index threads = call.threads();
  const double worth_it = static_cast<double>(n) * item_ns / kLeastTaskNs;
  const Index ranges =
      threads == 1 ? 1 : static_cast<Index>(__builtin_fmin(static_cast<double>(threads * kRangesPerThread), worth_it));
  if (ranges <= 1) return DoRange(f, 0, n);
  const Index length = ((n + ranges - 1) / ranges + step - 1) / step * step;
  call.For((n + length - 1) / length, [=](Index i) { DoRange(f, i * length, Min(n, (i + 1) * length)); });
}

// Ranges of floats: whole cache lines, so whole vectors too.
constexpr Index kLine = 16;

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_PROGRAM_RANGES_H_
