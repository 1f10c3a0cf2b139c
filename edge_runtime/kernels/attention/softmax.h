// softmax and its gradient (ops.h), and the sums of exponentials that other families need too.
#ifndef HEDGEROW_ATTENTION_SOFTMAX_H_
#define HEDGEROW_ATTENTION_SOFTMAX_H_

#include "math/generic.h"
#include "program/ranges.h"

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
  return static_cast<float>(SumOf(n, [=](Index i, Index k) HEDGEROW_INLINE_BODY {
    return LoadPart(a + i, k) * LoadPart(b + i, k);
  }));
}

// Rows of neighbours where inner is 1, else kWidth columns at a time.
Status softmax(const Call& call) {
  const Index outer = call.size(0), n = call.size(1), inner = call.size(2);
  const float* x = call.f32(0);
  float* y = call.f32(1);
  ForRanges(call, outer, static_cast<double>(n * inner), 1, [=](Index first, Index last) {
    for (Index o = first; o < last; ++o) {
      const float* from = x + o * n * inner;
      float* to = y + o * n * inner;
      if (inner == 1) {
        const float top = MaxOf(n, from), part = static_cast<float>(1 / SumOfExp(n, from, top));
        Map(n, from, to, [=](V v) HEDGEROW_INLINE_BODY { return ExpOfNegative(v - top) * part; });
        continue;
      }
      ForVectors(inner, [=](Index i, Index k) HEDGEROW_INLINE_BODY {
        V top = LoadPart(from + i, k), sum{};
        for (Index j = 1; j < n; ++j) {
          const V v = LoadPart(from + j * inner + i, k);
          top = v > top ? v : top;
        }
        // The exponentials wait in y: where it is x, each takes the place of what it came from.
        for (Index j = 0; j < n; ++j) {
          const V e = ExpOfNegative(LoadPart(from + j * inner + i, k) - top);
          sum += e;
          StorePart(to + j * inner + i, e, k);
        }
        const V part = 1.f / sum;
        for (Index j = 0; j < n; ++j) StorePart(to + j * inner + i, LoadPart(to + j * inner + i, k) * part, k);
      });
    }
  });
  return kOk;
}

// dx = y (g - sum g y)
Status softmax_grad(const Call& call) {
  const Index outer = call.size(0), n = call.size(1), inner = call.size(2);
  const float *g = call.f32(0), *y = call.f32(1);
  float* dx = call.f32(2);
  ForRanges(call, outer, static_cast<double>(n * inner) * 0.3, 1, [=](Index first, Index last) {
    for (Index o = first; o < last; ++o) {
      const float *gp = g + o * n * inner, *yp = y + o * n * inner;
      float* to = dx + o * n * inner;
      if (inner == 1) {
        const float mean = Dot(n, gp, yp);
        Map(n, gp, yp, to, [=](V d, V p) HEDGEROW_INLINE_BODY { return p * (d - mean); });
        continue;
      }
      ForVectors(inner, [=](Index i, Index k) HEDGEROW_INLINE_BODY {
        V mean{};
        for (Index j = 0; j < n; ++j) mean += LoadPart(gp + j * inner + i, k) * LoadPart(yp + j * inner + i, k);
        for (Index j = 0; j < n; ++j) {
          const V p = LoadPart(yp + j * inner + i, k);
          StorePart(to + j * inner + i, p * (LoadPart(gp + j * inner + i, k) - mean), k);
        }
      });
    }
  });
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ATTENTION_SOFTMAX_H_
