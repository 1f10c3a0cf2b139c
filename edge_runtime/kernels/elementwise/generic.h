// fill, unary and its gradient (ops.h); strided.h has those that walk by stride.
#ifndef HEDGEROW_ELEMENTWISE_GENERIC_H_
#define HEDGEROW_ELEMENTWISE_GENERIC_H_

#include "elementwise/activation.h"
#include "elementwise/strided.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

HEDGEROW_INLINE V Gelu(V x) { return x * NormalOf(x).cdf; }
// Phi(x) + x phi(x)
HEDGEROW_INLINE V GeluSlope(V x) {
  const Normal normal = NormalOf(x);
  // Bounded: phi is 0 long before 1e30, and 0 times infinity is not.
  return normal.cdf + Clamp(x, -1e30f, 1e30f) * (0.39894228f * normal.bell);
}
HEDGEROW_INLINE V SiluSlope(V x) {
  const V s = Sigmoid(x);
  return s * (1.f + Clamp(x, -1e30f, 1e30f) * (1.f - s));
}

// y[i] = f(x[i]), and of two operands, on all threads; an element takes about ns.
template <typename F>
HEDGEROW_INLINE void MapShared(const Call& call, double ns, Index n, const float* x, float* y, F f) {
  ForRanges(call, n, ns, kLine, [=](Index first, Index last) { Map(last - first, x + first, y + first, f); });
}
template <typename F>
HEDGEROW_INLINE void MapShared(const Call& call, double ns, Index n, const float* a, const float* b, float* y, F f) {
  ForRanges(call, n, ns, kLine, [=](Index first, Index last) {
    Map(last - first, a + first, b + first, y + first, f);
  });
}

constexpr double kCheapNs = 0.15, kExpNs = 0.5, kNormalNs = 0.8;

Status fill(const Call& call) {
  Splat(call.size(0), call.real(0), call.f32(0));
  return kOk;
}

Status unary(const Call& call) {
  const Index n = call.size(1);
  const float* x = call.f32(0);
  float* y = call.f32(1);
  const float a = call.real(0), b = call.real(1);
  auto map = [&](double ns, auto f) { MapShared(call, ns, n, x, y, f); };
  switch (call.size(0)) {
    case 0: map(kCheapNs, [](V v) HEDGEROW_INLINE_BODY { return Relu(v); }); break;
    case 1: map(kCheapNs, [](V v) HEDGEROW_INLINE_BODY { return Relu6(v); }); break;
    case 2: map(kNormalNs, [](V v) HEDGEROW_INLINE_BODY { return Gelu(v); }); break;
    case 3: map(kExpNs, [](V v) HEDGEROW_INLINE_BODY { return Sigmoid(v); }); break;
    case 4: map(kExpNs, [](V v) HEDGEROW_INLINE_BODY { return v * Sigmoid(v); }); break;
    case 5: map(kExpNs, [](V v) HEDGEROW_INLINE_BODY { return Tanh(v); }); break;
    case 6: map(kExpNs, [](V v) HEDGEROW_INLINE_BODY { return Exp(v); }); break;
    case 7: map(kCheapNs, [=](V v) HEDGEROW_INLINE_BODY { return a * v + b; }); break;
    case 8: map(kCheapNs, [=](V v) HEDGEROW_INLINE_BODY { return Clamp(v, a, b); }); break;
  }
  return kOk;
}

Status unary_grad(const Call& call) {
  const Index n = call.size(1);
  const float *g = call.f32(0), *t = call.f32(1);
  float* dx = call.f32(2);
  auto map = [&](double ns, auto f) { MapShared(call, ns, n, g, t, dx, f); };
  switch (call.size(0)) {
    case 0: map(kCheapNs, [](V d, V y) HEDGEROW_INLINE_BODY { return y > 0.f ? d : V{}; }); break;
    case 1:
      map(kCheapNs, [](V d, V y) HEDGEROW_INLINE_BODY { return y > 0.f ? (y < 6.f ? d : V{}) : V{}; });
      break;
    case 2: map(kNormalNs, [](V d, V x) HEDGEROW_INLINE_BODY { return d * GeluSlope(x); }); break;
    case 3: map(kCheapNs, [](V d, V y) HEDGEROW_INLINE_BODY { return d * (y * (1.f - y)); }); break;
    case 4: map(kExpNs, [](V d, V x) HEDGEROW_INLINE_BODY { return d * SiluSlope(x); }); break;
    case 5: map(kCheapNs, [](V d, V y) HEDGEROW_INLINE_BODY { return d * (1.f - y * y); }); break;
    case 6: map(kCheapNs, [](V d, V y) HEDGEROW_INLINE_BODY { return d * y; }); break;
  }
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ELEMENTWISE_GENERIC_H_
