// Batch norm (Ioffe & Szegedy 2015): statistics, the formula, and its gradient (ops.h).
#ifndef HEDGEROW_NORM_BATCH_H_
#define HEDGEROW_NORM_BATCH_H_

#include "elementwise/activation.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

// A tensor (N, C, S) by groups of neighbouring channels, which have some memory to themselves in each image: enough for
// a processor to see that it is read in order, and little enough for all images together to stay in a cache between
// one pass over the group and the next. kS is S where that is known here, so that the loops over a plane unroll, or 0.
template <Index kS>
struct Channels {
  static constexpr Index kGroupFloats = 8192, kMostAtOnce = 64;

  Channels(Index n, Index c, Index s) : N(n), C(c), S(kS ? kS : s), group(Max(1, Min(kMostAtOnce, kGroupFloats / S))) {}
  HEDGEROW_INLINE Index At(Index c, Index image) const { return (image * C + c) * (kS ? kS : S); }

  // f(first channel, one past the last) for each group; one element of the tensor takes element_ns.
  template <typename F>
  HEDGEROW_INLINE void ForGroups(const Call& call, double element_ns, F f) const {
    const double ns = static_cast<double>(N * S) * element_ns;
    ForRanges(call, C, ns, 1, [=, *this](Index begin, Index end) HEDGEROW_INLINE_BODY {
      for (Index c = begin; c < end; c += group) f(c, Min(end, c + group));
    });
  }

  const Index N, C, S, group;
};

// f(Channels) for a tensor (N, C, S).
template <typename F>
HEDGEROW_INLINE void WithChannels(Index N, Index C, Index S, F f) {
  if (S == 16) return f(Channels<16>(N, C, S));
  if (S == 64) return f(Channels<64>(N, C, S));
  f(Channels<0>(N, C, S));
}

// Sums over each channel of a group in the first `images` images, in blocks as in sums.h: totals[s][c - first] is the
// sum of terms[s], which f(c, at, k, terms) sets to the k elements at `at` of the tensor.
template <int kSums, typename Channels, typename F>
HEDGEROW_INLINE void SumGroup(const Channels& s, Index first, Index last, Index images,
                              double (&totals)[kSums][Channels::kMostAtOnce], F f) {
  LaneSums wide[Channels::kMostAtOnce][kSums];
  V block[Channels::kMostAtOnce][kSums];
  for (Index c = first; c < last; ++c) {
    for (int t = 0; t < kSums; ++t) block[c - first][t] = V{};
  }
  auto flush = [&] {
    for (Index c = 0; c < last - first; ++c) {
      for (int t = 0; t < kSums; ++t) {
        wide[c][t].Add(block[c][t]);
        block[c][t] = V{};
      }
    }
  };
  const Index whole = s.S / (kSumBlock * kWidth) * kSumBlock * kWidth;  // what of a plane makes blocks of its own
  Index used = 0;
  for (Index i = 0; i < images; ++i) {
    for (Index c = first; c < last; ++c) {
      const Index plane = s.At(c, i);
      V even[kSums] = {}, odd[kSums] = {}, terms[kSums];
      auto add = [&](Index j, Index k, V (&sums)[kSums]) HEDGEROW_INLINE_BODY {
        f(c, plane + j, k, terms);
        for (int t = 0; t < kSums; ++t) sums[t] += k == kWidth ? terms[t] : KeepFirst(terms[t], k);
      };
      Index j = 0;
      while (j < whole) {
        for (const Index end = j + kSumBlock * kWidth; j < end; j += 2 * kWidth) {
          add(j, kWidth, even);
          add(j + kWidth, kWidth, odd);
        }
        for (int t = 0; t < kSums; ++t) {
          wide[c - first][t].Add(even[t] + odd[t]);
          even[t] = odd[t] = V{};
        }
      }
      for (; j + 2 * kWidth <= s.S; j += 2 * kWidth) {
        add(j, kWidth, even);
        add(j + kWidth, kWidth, odd);
      }
      if (j + kWidth <= s.S) {
        add(j, kWidth, even);
        j += kWidth;
      }
      if (j < s.S) add(j, s.S - j, odd);
      for (int t = 0; t < kSums; ++t) block[c - first][t] += even[t] + odd[t];
    }
    used += (s.S - whole + kWidth - 1) / kWidth;
    if (used >= kSumBlock) {
      flush();
      used = 0;
    }
  }
  flush();
  for (Index c = 0; c < last - first; ++c) {
    for (int t = 0; t < kSums; ++t) totals[t][c] = wide[c][t].Total();
  }
}

// y = (x - mean)/sqrt(var + eps) w + b: the one place of the formula, so that every caller gets the same bits.
template <typename Channels, typename F>
HEDGEROW_INLINE void ApplyBatchNorm(const Channels& s, Index first, Index last, const float* x, const float* w,
                                    const float* b, const float* mean, const float* var, float eps, float* y, F act) {
  float slopes[Channels::kMostAtOnce];
  for (Index c = first; c < last; ++c) slopes[c - first] = w[c] / __builtin_sqrtf(var[c] + eps);
  for (Index i = 0; i < s.N; ++i) {
    for (Index c = first; c < last; ++c) {
      const float m = mean[c], slope = slopes[c - first], shift = b[c];
      Map(s.S, x + s.At(c, i), y + s.At(c, i), [=](V v) HEDGEROW_INLINE_BODY { return act((v - m) * slope + shift); });
    }
  }
}

template <typename Channels>
HEDGEROW_INLINE void Statistics(const Channels& s, Index first, Index last, Index images, const float* x, float* mean,
                                float* var) {
  const double n = static_cast<double>(images) * static_cast<double>(s.S);
  double totals[1][Channels::kMostAtOnce];
  SumGroup(s, first, last, images, totals, [=](Index, Index at, Index k, V (&terms)[1]) HEDGEROW_INLINE_BODY {
    terms[0] = LoadPart(x + at, k);
  });
  for (Index c = first; c < last; ++c) mean[c] = static_cast<float>(totals[0][c - first] / n);
  SumGroup(s, first, last, images, totals, [=](Index c, Index at, Index k, V (&terms)[1]) HEDGEROW_INLINE_BODY {
    const V d = LoadPart(x + at, k) - mean[c];
    terms[0] = d * d;
  });
  for (Index c = first; c < last; ++c) var[c] = static_cast<float>(totals[0][c - first] / n);
}

Status batch_norm(const Call& call) {
  const Index N = call.size(0), S = call.size(2), B = call.size(3), images = call.count(3, B) * (N / B);
  const float* x = call.f32(0);
  float *y = call.f32(4), *mean = call.f32(5), *var = call.f32(6);
  if (images == 0 || (images == 1 && S == 1)) return kOneValue;
  WithChannels(N, call.size(1), S, [&](const auto s) {
    WithActivation(call.size(4), [&](auto act) {
      s.ForGroups(call, 0.4, [=](Index first, Index last) HEDGEROW_INLINE_BODY {
        Statistics(s, first, last, images, x, mean, var);
        ApplyBatchNorm(s, first, last, x, call.f32(1), call.f32(2), mean, var, call.real(0), y, act);
      });
    });
  });
  return kOk;
}

Status batch_norm_apply(const Call& call) {
  WithChannels(call.size(0), call.size(1), call.size(2), [&](const auto s) {
    WithActivation(call.size(3), [&](auto act) {
      s.ForGroups(call, 0.2, [=](Index first, Index last) HEDGEROW_INLINE_BODY {
        ApplyBatchNorm(s, first, last, call.f32(0), call.f32(1), call.f32(2), call.f32(3), call.f32(4), call.real(0),
                       call.f32(5), act);
      });
    });
  });
  return kOk;
}

Status batch_norm_grad(const Call& call) {
  const Index N = call.size(0), B = call.size(3);
  const bool training = call.size(4) != 0;
  const float *g = call.f32(0), *x = call.f32(1), *w = call.f32(2), *mean = call.f32(3), *var = call.f32(4);
  float *dx = call.f32(6), *dw = call.f32(7), *db = call.f32(8);
  const Index images = training ? call.count(5, B) * (N / B) : N;
  WithChannels(N, call.size(1), call.size(2), [&](const auto s) {
    const double n = static_cast<double>(images) * static_cast<double>(s.S);
    s.ForGroups(call, 0.4, [=](Index first, Index last) HEDGEROW_INLINE_BODY {
      double totals[2][s.kMostAtOnce];  // of g and of g (x - mean)
      SumGroup(s, first, last, images, totals, [=](Index c, Index at, Index k, V (&terms)[2]) HEDGEROW_INLINE_BODY {
        terms[0] = LoadPart(g + at, k);
        terms[1] = terms[0] * (LoadPart(x + at, k) - mean[c]);
      });
      // dx = slope (g - mean of g - xhat mean of g xhat), the last two only through the statistics.
      float slope[s.kMostAtOnce], mean_g[s.kMostAtOnce], mean_gx[s.kMostAtOnce];
      for (Index c = first; c < last; ++c) {
        const float rstd = 1.f / __builtin_sqrtf(var[c] + call.real(0));
        const double sum_g = totals[0][c - first], sum_gx = rstd * totals[1][c - first];
        slope[c - first] = w[c] * rstd;
        mean_g[c - first] = training && images > 0 ? static_cast<float>(sum_g / n) : 0;
        mean_gx[c - first] = training && images > 0 ? static_cast<float>(sum_gx / n) * rstd : 0;
        dw[c] = static_cast<float>(sum_gx);
        db[c] = static_cast<float>(sum_g);
      }
      for (Index i = 0; i < images; ++i) {
        for (Index c = first; c < last; ++c) {
          const Index at = s.At(c, i);
          const float m = mean[c], a = slope[c - first], mg = mean_g[c - first], mgx = mean_gx[c - first];
          Map(s.S, g + at, x + at, dx + at, [=](V d, V v) HEDGEROW_INLINE_BODY { return a * (d - mg - (v - m) * mgx); });
        }
      }
    });
    Zero((N - images) * s.C * s.S, dx + images * s.C * s.S);
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
