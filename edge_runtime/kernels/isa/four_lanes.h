// Parts of a vector for the ISAs with four lanes and no masked loads.
#ifndef HEDGEROW_ISA_FOUR_LANES_H_
#define HEDGEROW_ISA_FOUR_LANES_H_

#include <cstddef>

namespace {

struct FourLanes {
  static constexpr int kWidth = 4;
  using Vector = float __attribute__((vector_size(16)));

  // The larger and the smaller of x and a number; x where it is NaN.
  static inline __attribute__((always_inline)) Vector AtLeast(Vector low, Vector x) { return x < low ? low : x; }
  static inline __attribute__((always_inline)) Vector AtMost(Vector high, Vector x) { return x > high ? high : x; }

  static inline __attribute__((always_inline)) Vector LoadPart(const float* p, ptrdiff_t n) {
    Vector v{};
    if (n > 0) v[0] = p[0];
    if (n > 1) v[1] = p[1];
    if (n > 2) v[2] = p[2];
    return v;
  }
  static inline __attribute__((always_inline)) void StorePart(float* p, Vector v, ptrdiff_t n) {
    if (n > 0) p[0] = v[0];
    if (n > 1) p[1] = v[1];
    if (n > 2) p[2] = v[2];
  }
};

}  // namespace

#endif  // HEDGEROW_ISA_FOUR_LANES_H_
