// The two loops, once. An ISA supplies how many floats a block has, to check and to add, and what to do with one.
#ifndef HEDGEROW_ACCUMULATE_GENERIC_H_
#define HEDGEROW_ACCUMULATE_GENERIC_H_

#include <cstring>

#include "accumulate/accumulate.h"

namespace hedgerow {

namespace {

// A float is NaN or infinite exactly when its exponent bits are all ones.
inline bool IsFinite(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits & 0x7f800000u) != 0x7f800000u;
}

}  // namespace

template <typename Isa>
int32_t AllFinite(size_t n, const float* x) {
  size_t i = 0;
  for (; i + Isa::kFiniteWidth <= n; i += Isa::kFiniteWidth) {
    if (!Isa::BlockFinite(x + i)) return 0;
  }
  for (; i < n; ++i) {
    if (!IsFinite(x[i])) return 0;
  }
  return 1;
}

// The sums are written in whole cache lines: NumPy aligns large arrays to 16 bytes, and a store that crosses a line
// takes as long as two.
template <typename Isa>
void Accumulate(size_t n, const float* x, double weight, double* acc) {
  size_t i = 0;
  for (; i < n && reinterpret_cast<uintptr_t>(acc + i) % 64 != 0; ++i) acc[i] += static_cast<double>(x[i]) * weight;
  for (; i + Isa::kWidth <= n; i += Isa::kWidth) Isa::BlockAccumulate(x + i, weight, acc + i);
  for (; i < n; ++i) acc[i] += static_cast<double>(x[i]) * weight;
}

template <typename Isa>
constexpr AccumulateKernels MakeAccumulateKernels() {
  return {AllFinite<Isa>, Accumulate<Isa>};
}

}  // namespace hedgerow

#endif  // HEDGEROW_ACCUMULATE_GENERIC_H_
