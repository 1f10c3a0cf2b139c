// Optimizer steps and what surrounds them (ops.h). A gradient is looked at block by block before the block is used, so
// a NaN never spreads past the block where it was found.
#ifndef HEDGEROW_UPDATE_GENERIC_H_
#define HEDGEROW_UPDATE_GENERIC_H_

#include "math/generic.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

HEDGEROW_INLINE bool AllFinite(Index n, const float* x) {
  V a{}, b{}, c{}, d{};  // 0 times a number is 0, times anything else NaN, and a NaN stays
  Index i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    a += 0.f * Load(x + i);
    b += 0.f * Load(x + i + kWidth);
    c += 0.f * Load(x + i + 2 * kWidth);
    d += 0.f * Load(x + i + 3 * kWidth);
  }
  for (; i < n; i += kWidth) a += 0.f * LoadPart(x + i, Min(kWidth, n - i));
  a = (a + b) + (c + d);
  float all = 0;
  for (Index lane = 0; lane < kWidth; ++lane) all += a[lane];
  return all == 0;
}

constexpr Index kCheckBlock = 1024;

// f(i, k) for every vector of elements, as ForVectors, while g is finite, shared by the team. Where g is not, the block
// of it that shows this and the rest of its range are left out.
template <typename F>
HEDGEROW_INLINE Status ForFinite(const Call& call, Index n, const float* g, F f) {
  int32_t status = kOk, *const found = &status;
  ForRanges(call, n, 0.2, kCheckBlock, [=](Index first, Index last) {
    for (Index block = first; block < last; block += kCheckBlock) {
      const Index length = Min(kCheckBlock, last - block);
      if (!AllFinite(length, g + block)) return __atomic_store_n(found, int32_t{kNotFinite}, __ATOMIC_RELAXED);
      ForVectors(length, [=](Index i, Index k) HEDGEROW_INLINE_BODY { f(block + i, k); });
    }
  });
  return static_cast<Status>(status);
}

Status sgd(const Call& call) {
  float *w = call.f32(0), *v = call.f32(2);
  const float *g = call.f32(1), lr = call.value(3);
  const bool nesterov = call.size(1) != 0;
  const float momentum = call.real(0), decay = call.real(1);
  if (!v) {
    return ForFinite(call, call.size(0), g, [=](Index i, Index k) HEDGEROW_INLINE_BODY {
      const V old = LoadPart(w + i, k);
      StorePart(w + i, old - lr * (LoadPart(g + i, k) + decay * old), k);
    });
  }
  return ForFinite(call, call.size(0), g, [=](Index i, Index k) HEDGEROW_INLINE_BODY {
    const V old = LoadPart(w + i, k), d = LoadPart(g + i, k) + decay * old;
    const V velocity = momentum * LoadPart(v + i, k) + d;
    StorePart(v + i, velocity, k);
    StorePart(w + i, old - lr * (nesterov ? d + momentum * velocity : velocity), k);
  });
}

Status adam(const Call& call) {
  float *w = call.f32(0), *m = call.f32(2), *v = call.f32(3);
  const float *g = call.f32(1), lr = call.value(4), *corrections = call.f32(5);
  const float c1 = corrections[0], c2 = corrections[1];
  const bool decoupled = call.size(1) != 0;
  const float rest1 = static_cast<float>(1 - call.op.floats[0]), beta2 = call.real(1),
              rest2 = static_cast<float>(1 - call.op.floats[1]), eps = call.real(2), decay = call.real(3);
  const float shrink = decoupled ? 1 - lr * decay : 1, coupled = decoupled ? 0 : decay;
  return ForFinite(call, call.size(0), g, [=](Index i, Index k) HEDGEROW_INLINE_BODY {
    const V old = LoadPart(w + i, k), old_m = LoadPart(m + i, k);
    const V d = LoadPart(g + i, k) + coupled * old;
    const V new_m = old_m + rest1 * (d - old_m);
    const V new_v = beta2 * LoadPart(v + i, k) + rest2 * d * d;
    StorePart(m + i, new_m, k);
    StorePart(v + i, new_v, k);
    StorePart(w + i, old * shrink - lr * c1 * new_m / (Sqrt(new_v) * c2 + eps), k);
  });
}

Status rmsprop(const Call& call) {
  float *w = call.f32(0), *v = call.f32(2), *u = call.f32(3);
  const float *g = call.f32(1), lr = call.value(4);
  const float alpha = call.real(0), rest = static_cast<float>(1 - call.op.floats[0]), eps = call.real(1),
              momentum = call.real(2), decay = call.real(3);
  return ForFinite(call, call.size(0), g, [=](Index i, Index k) HEDGEROW_INLINE_BODY {
    const V old = LoadPart(w + i, k);
    const V d = LoadPart(g + i, k) + decay * old;
    const V new_v = alpha * LoadPart(v + i, k) + rest * d * d;
    StorePart(v + i, new_v, k);
    V step = d / (Sqrt(new_v) + eps);
    if (u) {
      step += momentum * LoadPart(u + i, k);
      StorePart(u + i, step, k);
    }
    StorePart(w + i, old - lr * step, k);
  });
}

Status adagrad(const Call& call) {
  float *w = call.f32(0), *v = call.f32(2);
  const float *g = call.f32(1), lr = call.value(3);
  const float eps = call.real(0), decay = call.real(1);
  return ForFinite(call, call.size(0), g, [=](Index i, Index k) HEDGEROW_INLINE_BODY {
    const V old = LoadPart(w + i, k);
    const V d = LoadPart(g + i, k) + decay * old;
    const V new_v = LoadPart(v + i, k) + d * d;
    StorePart(v + i, new_v, k);
    StorePart(w + i, old - lr * d / (Sqrt(new_v) + eps), k);
  });
}

Status proximal(const Call& call) {
  const float *g = call.f32(0), *w = call.f32(1), *anchor = call.f32(2);
  float* y = call.f32(3);
  const float mu = call.real(0);
  ForRanges(call, call.size(0), 0.2, kLine, [=](Index first, Index last) {
    ForVectors(last - first, [=](Index at, Index k) HEDGEROW_INLINE_BODY {
      const Index i = first + at;
      StorePart(y + i, LoadPart(g + i, k) + mu * (LoadPart(w + i, k) - LoadPart(anchor + i, k)), k);
    });
  });
  return kOk;
}

Status square_sum(const Call& call) {
  const float* x = call.f32(0);
  *call.f32(1) = static_cast<float>(SumOf(call.size(0), [=](Index i, Index k) HEDGEROW_INLINE_BODY {
    const V v = LoadPart(x + i, k);
    return v * v;
  }));
  return kOk;
}

Status clip_scale(const Call& call) {
  const float scale = call.real(0) / (__builtin_sqrtf(call.value(0)) + 1e-6f);
  *call.f32(1) = scale > 1 ? 1 : scale;  // NaN stays NaN
  return kOk;
}

Status check_finite(const Call& call) { return AllFinite(call.size(0), call.f32(0)) ? kOk : kNotFinite; }

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_UPDATE_GENERIC_H_
