// Portable reference of the accumulate family; the other ISAs are tested against it.
#include "accumulate/generic.h"

namespace hedgerow {
namespace {

struct Scalar {
  static constexpr size_t kFiniteWidth = 1, kWidth = 1;
  static bool BlockFinite(const float* x) { return IsFinite(*x); }
  static void BlockAccumulate(const float* x, double weight, double* acc) {
    *acc += static_cast<double>(*x) * weight;
  }
};

}  // namespace

const AccumulateKernels kAccumulateScalar = MakeAccumulateKernels<Scalar>();

}  // namespace hedgerow
