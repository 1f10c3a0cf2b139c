// Losses over pairs of numbers (ops.h); classes.h has those over rows of logits.
#ifndef HEDGEROW_LOSS_GENERIC_H_
#define HEDGEROW_LOSS_GENERIC_H_

#include "loss/classes.h"

namespace hedgerow {
namespace {

Status pair_loss(const Call& call) {
  const Index n = call.count(2, call.size(2)) * (call.size(1) / call.size(2));
  const float *p = call.f32(0), *t = call.f32(1);
  const float delta = call.real(0);
  auto sum_of = [=](auto f) {
    return SumOf(n, [=](Index i, Index k) HEDGEROW_INLINE_BODY { return f(LoadPart(p + i, k) - LoadPart(t + i, k)); });
  };
  double loss = 0;
  switch (call.size(0)) {
    case 0: loss = sum_of([](V d) HEDGEROW_INLINE_BODY { return d * d; }); break;
    case 1: loss = sum_of([](V d) HEDGEROW_INLINE_BODY { return Abs(d); }); break;
    case 2:
      loss = sum_of([=](V d) HEDGEROW_INLINE_BODY {
        const V far = delta * (Abs(d) - 0.5f * delta);
        return Abs(d) <= delta ? 0.5f * d * d : far;
      });
      break;
    case 3:
      for (Index i = 0; i < n; ++i) {
        const double z = p[i];
        loss += (z > 0 ? z : 0) - z * t[i] + std::log1p(std::exp(-std::fabs(z)));
      }
      break;
  }
  *call.f32(4) = static_cast<float>(call.value(3) * loss);
  return kOk;
}

Status pair_loss_grad(const Call& call) {
  const Index n = call.size(1), counted = call.count(3, call.size(2)) * (n / call.size(2));
  const float *p = call.f32(1), *t = call.f32(2);
  float* dp = call.f32(5);
  const float scale = call.value(0) * call.value(4), delta = call.real(0);
  switch (call.size(0)) {
    case 0: Map(counted, p, t, dp, [=](V a, V b) HEDGEROW_INLINE_BODY { return scale * 2.f * (a - b); }); break;
    case 1:
      Map(counted, p, t, dp, [=](V a, V b) HEDGEROW_INLINE_BODY {
        return scale * (a > b ? Splat(1) : a < b ? Splat(-1) : a - b);
      });
      break;
    case 2:
      Map(counted, p, t, dp, [=](V a, V b) HEDGEROW_INLINE_BODY { return scale * Clamp(a - b, -delta, delta); });
      break;
    case 3: Map(counted, p, t, dp, [=](V a, V b) HEDGEROW_INLINE_BODY { return scale * (Sigmoid(a) - b); }); break;
  }
  Zero(n - counted, dp + counted);
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_LOSS_GENERIC_H_
