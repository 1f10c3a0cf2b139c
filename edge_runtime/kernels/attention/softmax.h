// softmax and its gradient (ops.h), and the sums of exponentials that other families need too.
#ifndef HEDGEROW_ATTENTION_SOFTMAX_H_
#define HEDGEROW_ATTENTION_SOFTMAX_H_

#include "math/generic.h"
#include "program/call.h"

namespace hedgerow {
namespace {

// The largest of n >= 1 floats; numbers win over NaN.
float MaxOf(Index n, const float* x) {
  V best = Splat(x[0]);
  Index i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const V v = Load(x + i);
    best = v > best ? v : best;
  }
  float top = best[0];
  for (Index lane = 1; lane < kWidth; ++lane) top = best[lane] > top ? best[lane] : top;
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// sum of exp(x - top)
double SumOfExp(Index n, const float* x, float top) {
  return SumOf(n, [=](Index i, Index k) HEDGEROW_INLINE_BODY { return ExpOfNegative(LoadPart(x + i, k) - top); });
}

float Dot(Index n, const float* a, const float* b) {
  return static_cast<float>(SumOf(n, [=](Index i, Index k) HEDGEROW_INLINE_BODY { return LoadPart(a + i, k) * LoadPart(b + i, k); }));
}

// Rows of neighbours where inner is 1, else kWidth columns at a time.
Status softmax(const Call& call) {
  const Index outer = call.size(0), n = call.size(1), inner = call.size(2);
  const float* x = call.f32(0);
  float* y = call.f32(1);
  for (Index o = 0; o < outer; ++o, x += n * inner, y += n * inner) {
    if (inner == 1) {
      const float top = MaxOf(n, x), part = static_cast<float>(1 / SumOfExp(n, x, top));
      Map(n, x, y, [=](V v) HEDGEROW_INLINE_BODY { return ExpOfNegative(v - top) * part; });
      continue;
    }
    ForVectors(inner, [&](Index i, Index k) HEDGEROW_INLINE_BODY {
      V top = LoadPart(x + i, k), sum{};
      for (Index j = 1; j < n; ++j) {
        const V v = LoadPart(x + j * inner + i, k);
        top = v > top ? v : top;
      }
      for (Index j = 0; j < n; ++j) sum += ExpOfNegative(LoadPart(x + j * inner + i, k) - top);
      for (Index j = 0; j < n; ++j) {
        StorePart(y + j * inner + i, ExpOfNegative(LoadPart(x + j * inner + i, k) - top) / sum, k);
      }
    });
  }
  return kOk;
}

// dx = y (g - sum g y)
Status softmax_grad(const Call& call) {
  const Index outer = call.size(0), n = call.size(1), inner = call.size(2);
  const float *g = call.f32(0), *y = call.f32(1);
  float* dx = call.f32(2);
  for (Index o = 0; o < outer; ++o, g += n * inner, y += n * inner, dx += n * inner) {
    if (inner == 1) {
      const float mean = Dot(n, g, y);
      Map(n, g, y, dx, [=](V d, V p) HEDGEROW_INLINE_BODY { return p * (d - mean); });
      continue;
    }
    ForVectors(inner, [&](Index i, Index k) HEDGEROW_INLINE_BODY {
      V mean{};
      for (Index j = 0; j < n; ++j) mean += LoadPart(g + j * inner + i, k) * LoadPart(y + j * inner + i, k);
      for (Index j = 0; j < n; ++j) {
        const V p = LoadPart(y + j * inner + i, k);
        StorePart(dx + j * inner + i, p * (LoadPart(g + j * inner + i, k) - mean), k);
      }
    });
  }
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ATTENTION_SOFTMAX_H_
