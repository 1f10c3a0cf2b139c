// Batch norm (Ioffe & Szegedy 2015): statistics, the formula, and its gradient (ops.h).
#ifndef HEDGEROW_NORM_BATCH_H_
#define HEDGEROW_NORM_BATCH_H_

#include "elementwise/activation.h"
#include "program/call.h"

namespace hedgerow {
namespace {

// A tensor (N, C, S), channel by channel: the planes of one stand C S elements apart. kS is S where that is known here,
// so that the loops over a short plane unroll, or 0.
template <Index kS>
struct Channels {
  Channels(Index n, Index c, Index s) : N(n), C(c), S(kS ? kS : s) {}
  HEDGEROW_INLINE Index At(Index c, Index plane) const { return (plane * C + c) * (kS ? kS : S); }

  // f(first channel, one past the last) for all channels, some at a time where together they are short: what is done
  // once for a channel takes long to come out of the pipeline, and several can be in it.
  template <typename F>
  HEDGEROW_INLINE void ForGroups(F f) const {
    const Index group = N * S <= kShort ? kMostAtOnce : 1;
    for (Index c = 0; c < C; c += group) f(c, Min(C, c + group));
  }
  static constexpr Index kShort = 2048, kMostAtOnce = 8;

  const Index N, C, S;
};

// f(Channels) for a tensor (N, C, S).
template <typename F>
HEDGEROW_INLINE void WithChannels(Index N, Index C, Index S, F f) {
  if (S == 16) return f(Channels<16>(N, C, S));
  if (S == 64) return f(Channels<64>(N, C, S));
  f(Channels<0>(N, C, S));
}

// y = (x - mean)/sqrt(var + eps) w + b: the one place of the formula, so that every caller gets the same bits.
template <typename Channels>
HEDGEROW_INLINE void ApplyBatchNorm(const Channels& s, Index first, Index last, const float* x, const float* w,
                                    const float* b, const float* mean, const float* var, float eps, float* y) {
  float slopes[Channels::kMostAtOnce];
  for (Index c = first; c < last; ++c) slopes[c - first] = w[c] / __builtin_sqrtf(var[c] + eps);
  for (Index i = 0; i < s.N; ++i) {
    for (Index c = first; c < last; ++c) {
      const float m = mean[c], slope = slopes[c - first], shift = b[c];
      Map(s.S, x + s.At(c, i), y + s.At(c, i), [=](V v) { return (v - m) * slope + shift; });
    }
  }
}

template <typename Channels>
HEDGEROW_INLINE void Statistics(const Channels& s, Index first, Index last, Index rows, const float* x, float* mean,
                                float* var) {
  const double n = static_cast<double>(rows) * static_cast<double>(s.S);
  for (Index c = first; c < last; ++c) {
    double sum[1];
    SumRuns(rows, s.S, sum, [=](Index i, Index j, Index k, V (&terms)[1]) {
      terms[0] = LoadPart(x + s.At(c, i) + j, k);
    });
    mean[c] = static_cast<float>(sum[0] / n);
  }
  for (Index c = first; c < last; ++c) {
    double squares[1];
    const float m = mean[c];
    SumRuns(rows, s.S, squares, [=](Index i, Index j, Index k, V (&terms)[1]) {
      const V d = LoadPart(x + s.At(c, i) + j, k) - m;
      terms[0] = d * d;
    });
    var[c] = static_cast<float>(squares[0] / n);
  }
}

Status batch_norm(const Call& call) {
  const Index N = call.size(0), S = call.size(2), B = call.size(3), rows = call.count(3, B) * (N / B);
  const float* x = call.f32(0);
  float *y = call.f32(4), *mean = call.f32(5), *var = call.f32(6);
  if (rows == 0 || (rows == 1 && S == 1)) return kOneValue;
  WithChannels(N, call.size(1), S, [&](const auto s) {
    s.ForGroups([&](Index first, Index last) {
      Statistics(s, first, last, rows, x, mean, var);
      // While the channels are in the cache.
      ApplyBatchNorm(s, first, last, x, call.f32(1), call.f32(2), mean, var, call.real(0), y);
    });
  });
  return kOk;
}

Status batch_norm_apply(const Call& call) {
  WithChannels(call.size(0), call.size(1), call.size(2), [&](const auto s) {
    s.ForGroups([&](Index first, Index last) {
      ApplyBatchNorm(s, first, last, call.f32(0), call.f32(1), call.f32(2), call.f32(3), call.f32(4), call.real(0),
                     call.f32(5));
    });
  });
  return kOk;
}

Status batch_norm_grad(const Call& call) {
  const Index N = call.size(0), B = call.size(3);
  const bool training = call.size(4) != 0;
  const float *g = call.f32(0), *x = call.f32(1), *w = call.f32(2), *mean = call.f32(3), *var = call.f32(4);
  float *dx = call.f32(6), *dw = call.f32(7), *db = call.f32(8);
  const Index rows = training ? call.count(5, B) * (N / B) : N;
  WithChannels(N, call.size(1), call.size(2), [&](const auto s) {
    const double n = static_cast<double>(rows) * static_cast<double>(s.S);
    s.ForGroups([&](Index first, Index last) {
      // dx = slope (g - mean of g - xhat mean of g xhat), the last two only through the statistics.
      float slope[s.kMostAtOnce], mean_g[s.kMostAtOnce], mean_gx[s.kMostAtOnce];
      for (Index c = first; c < last; ++c) {
        const float m = mean[c], rstd = 1.f / __builtin_sqrtf(var[c] + call.real(0));
        double sums[2];
        SumRuns(rows, s.S, sums, [=](Index i, Index j, Index k, V (&terms)[2]) {
          const Index at = s.At(c, i) + j;
          terms[0] = LoadPart(g + at, k);
          terms[1] = terms[0] * (LoadPart(x + at, k) - m);
        });
        const double sum_g = sums[0], sum_gx = rstd * sums[1];
        slope[c - first] = w[c] * rstd;
        mean_g[c - first] = training && rows > 0 ? static_cast<float>(sum_g / n) : 0;
        mean_gx[c - first] = training && rows > 0 ? static_cast<float>(sum_gx / n) * rstd : 0;
        dw[c] = static_cast<float>(sum_gx);
        db[c] = static_cast<float>(sum_g);
      }
      for (Index i = 0; i < N; ++i) {
        for (Index c = first; c < last; ++c) {
          const Index at = s.At(c, i);
          const float m = mean[c], a = slope[c - first], mg = mean_g[c - first], mgx = mean_gx[c - first];
          if (i < rows) {
            Map(s.S, g + at, x + at, dx + at, [=](V d, V v) { return a * (d - mg - (v - m) * mgx); });
          } else {
            Zero(s.S, dx + at);
          }
        }
      }
    });
  });
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
