// What an op may end with (`act` in ops.h): 0 nothing, 1 relu, 2 relu6; a NaN stays one.
#ifndef HEDGEROW_ELEMENTWISE_ACTIVATION_H_
#define HEDGEROW_ELEMENTWISE_ACTIVATION_H_

#include "math/generic.h"

namespace hedgerow {
namespace {

HEDGEROW_INLINE V Relu(V v) { return v < 0.f ? V{} : v; }
HEDGEROW_INLINE V Relu6(V v) { return Clamp(v, 0.f, 6.f); }

HEDGEROW_INLINE V Activated(Index act, V v) { return act == 0 ? v : act == 1 ? Relu(v) : Relu6(v); }

// f(what the op ends with), for loops that are compiled once for each: they store nothing else.
template <typename F>
HEDGEROW_INLINE void WithActivation(Index act, F f) {
  if (act == 1) return f([](V v) { return Relu(v); });
  if (act == 2) return f([](V v) { return Relu6(v); });
  f([](V v) { return v; });
}

void Activate(Index act, Index n, float* y) {
  if (act == 1) Map(n, y, y, [](V v) { return Relu(v); });
  if (act == 2) Map(n, y, y, [](V v) { return Relu6(v); });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ELEMENTWISE_ACTIVATION_H_
