// Batch norm (Ioffe & Szegedy 2015): statistics, the formula, and its gradient (ops.h).
#ifndef HEDGEROW_NORM_BATCH_H_
#define HEDGEROW_NORM_BATCH_H_

#include "elementwise/activation.h"
#include "program/call.h"

namespace hedgerow {
namespace {

// The sum of f(i) over the first `rows` planes of one channel.
template <typename F>
HEDGEROW_INLINE double SumChannel(Index rows, F f) {
  double total = 0;
  for (Index i = 0; i < rows; ++i) total += f(i);
  return total;
}

// y = (x - mean)/sqrt(var + eps) w + b: the one place of the formula, so that every caller gets the same bits.
void ApplyBatchNorm(Index N, Index C, Index S, const float* x, const float* w, const float* b, const float* mean,
                    const float* var, float eps, float* y) {
  for (Index i = 0; i < N; ++i) {
    for (Index c = 0; c < C; ++c, x += S, y += S) {
      const float m = mean[c], slope = w[c] / __builtin_sqrtf(var[c] + eps), shift = b[c];
      Map(S, x, y, [=](V v) { return (v - m) * slope + shift; });
    }
  }
}

Status batch_norm(const Call& call) {
  const Index N = call.size(0), C = call.size(1), S = call.size(2), B = call.size(3);
  const float* x = call.f32(0);
  float *mean = call.f32(5), *var = call.f32(6);
  const Index rows = call.count(3, B) * (N / B);
  const double n = static_cast<double>(rows) * static_cast<double>(S);
  if (n <= 1) return kOneValue;
  for (Index c = 0; c < C; ++c) {
    const float* plane = x + c * S;
    const float m = static_cast<float>(SumChannel(rows, [=](Index i) { return Sum(S, plane + i * C * S); }) / n);
    const double squares = SumChannel(rows, [=](Index i) {
      const float* p = plane + i * C * S;
      return SumOf(S, [=](Index j, Index k) {
        const V d = LoadPart(p + j, k) - m;
        return d * d;
      });
    });
    mean[c] = m;
    var[c] = static_cast<float>(squares / n);
  }
  ApplyBatchNorm(N, C, S, x, call.f32(1), call.f32(2), mean, var, call.real(0), call.f32(4));
  Activate(call.size(4), N * C * S, call.f32(4));
  return kOk;
}

Status batch_norm_apply(const Call& call) {
  ApplyBatchNorm(call.size(0), call.size(1), call.size(2), call.f32(0), call.f32(1), call.f32(2), call.f32(3),
                 call.f32(4), call.real(0), call.f32(5));
  Activate(call.size(3), call.size(0) * call.size(1) * call.size(2), call.f32(5));
  return kOk;
}

Status batch_norm_grad(const Call& call) {
  const Index N = call.size(0), C = call.size(1), S = call.size(2), B = call.size(3);
  const bool training = call.size(4) != 0;
  const float *g = call.f32(0), *x = call.f32(1), *w = call.f32(2), *mean = call.f32(3), *var = call.f32(4);
  float *dx = call.f32(6), *dw = call.f32(7), *db = call.f32(8);
  const Index rows = training ? call.count(5, B) * (N / B) : N;
  const double n = static_cast<double>(rows) * static_cast<double>(S);
  for (Index c = 0; c < C; ++c) {
    const float m = mean[c], rstd = 1.f / __builtin_sqrtf(var[c] + call.real(0)), slope = w[c] * rstd;
    const double sum_g = SumChannel(rows, [=](Index i) { return Sum(S, g + (i * C + c) * S); });
    const double sum_gx = rstd * SumChannel(rows, [=](Index i) {
      const float *gp = g + (i * C + c) * S, *xp = x + (i * C + c) * S;
      return SumOf(S, [=](Index j, Index k) { return LoadPart(gp + j, k) * (LoadPart(xp + j, k) - m); });
    });
    // dx = slope (g - mean of g - xhat mean of g xhat), the last two only through the statistics.
    const float mean_g = training && rows > 0 ? static_cast<float>(sum_g / n) : 0;
    const float mean_gx = training && rows > 0 ? static_cast<float>(sum_gx / n) * rstd : 0;
    for (Index i = 0; i < N; ++i) {
      const Index at = (i * C + c) * S;
      if (i < rows) {
        Map(S, g + at, x + at, dx + at, [=](V d, V v) { return slope * (d - mean_g - (v - m) * mean_gx); });
      } else {
        Zero(S, dx + at);
      }
    }
    dw[c] = static_cast<float>(sum_gx);
    db[c] = static_cast<float>(sum_g);
  }
  return kOk;
}

Status running_stats(const Call& call) {
  const Index C = call.size(1), B = call.size(3);
  const float *mean = call.f32(0), *var = call.f32(1);
  float *running_mean = call.f32(3), *running_var = call.f32(4);
  const double n = static_cast<double>(call.count(2, B)) * static_cast<double>(call.op.ints[0] / B) *
                   static_cast<double>(call.op.ints[2]);
  if (n <= 1) return kOneValue;
  const float momentum = call.real(0), rest = static_cast<float>(1 - call.op.floats[0]);
  const float unbiased = static_cast<float>(call.op.floats[0] * (n / (n - 1)));
  for (Index c = 0; c < C; ++c) {
    running_mean[c] = rest * running_mean[c] + momentum * mean[c];
    running_var[c] = rest * running_var[c] + unbiased * var[c];
  }
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_NORM_BATCH_H_
