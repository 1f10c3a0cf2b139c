// Attention one row of q at a time, so that the scores are never all there at once; the gradient computes them again
// from lse (Dao et al. 2022).
#ifndef HEDGEROW_ATTENTION_GENERIC_H_
#define HEDGEROW_ATTENTION_GENERIC_H_

#include <cmath>

#include "attention/softmax.h"

namespace hedgerow {
namespace {

Status attention(const Call& call) {
  const Index P = call.size(0), Tq = call.size(1), Tk = call.size(2), D = call.size(3), Dv = call.size(4);
  const bool causal = call.size(5) != 0;
  const float *q = call.f32(0), *k = call.f32(1), *v = call.f32(2);
  float *y = call.f32(3), *lse = call.f32(4), *scores = call.f32(5);
  const float scale = call.real(0);
  for (Index p = 0; p < P; ++p, k += Tk * D, v += Tk * Dv) {
    for (Index i = 0; i < Tq; ++i, q += D, y += Dv) {
      const Index seen = causal ? Min(Tk, i + 1) : Tk;
      for (Index j = 0; j < seen; ++j) scores[j] = scale * Dot(D, q, k + j * D);
      const float top = MaxOf(seen, scores);
      const double sum = SumOfExp(seen, scores, top);
      const float part = static_cast<float>(1 / sum);
      Map(seen, scores, scores, [=](V s) { return Exp(s - top) * part; });
      Zero(Dv, y);
      for (Index j = 0; j < seen; ++j) AddScaled(Dv, scores[j], v + j * Dv, y);
      *lse++ = static_cast<float>(top + std::log(sum));
    }
  }
  return kOk;
}

Status attention_grad(const Call& call) {
  const Index P = call.size(0), Tq = call.size(1), Tk = call.size(2), D = call.size(3), Dv = call.size(4);
  const bool causal = call.size(5) != 0;
  const float *g = call.f32(0), *q = call.f32(1), *k = call.f32(2), *v = call.f32(3), *y = call.f32(4);
  const float* lse = call.f32(5);
  float *dq = call.f32(6), *dk = call.f32(7), *dv = call.f32(8), *probs = call.f32(9), *dscores = probs + Tk;
  const float scale = call.real(0);
  Zero(P * Tk * D, dk);
  Zero(P * Tk * Dv, dv);
  for (Index p = 0; p < P; ++p, k += Tk * D, dk += Tk * D, v += Tk * Dv, dv += Tk * Dv) {
    for (Index i = 0; i < Tq; ++i, q += D, dq += D, y += Dv, g += Dv, ++lse) {
      const Index seen = causal ? Min(Tk, i + 1) : Tk;
      for (Index j = 0; j < seen; ++j) {
        probs[j] = scale * Dot(D, q, k + j * D);
        dscores[j] = Dot(Dv, g, v + j * Dv);
      }
      const float log_sum = *lse, mean = Dot(Dv, g, y);
      Map(seen, probs, probs, [=](V s) { return Exp(s - log_sum); });
      Map(seen, probs, dscores, dscores, [=](V prob, V d) { return scale * prob * (d - mean); });
      Zero(D, dq);
      for (Index j = 0; j < seen; ++j) {
        AddScaled(D, dscores[j], k + j * D, dq);
        AddScaled(D, dscores[j], q, dk + j * D);
        AddScaled(Dv, probs[j], g, dv + j * Dv);
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ATTENTION_GENERIC_H_
