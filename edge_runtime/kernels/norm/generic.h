// Group norm (Wu & He 2018) and layer norm (Ba et al. 2016): each over runs of neighbours (ops.h).
#ifndef HEDGEROW_NORM_GENERIC_H_
#define HEDGEROW_NORM_GENERIC_H_

#include "math/generic.h"
#include "norm/batch.h"

namespace hedgerow {
namespace {

struct Moments {
  float mean, rstd;
};

Moments MomentsOf(Index n, const float* x, double eps) {
  const float m = static_cast<float>(Sum(n, x) / static_cast<double>(n));
  const double squares = SumOf(n, [=](Index i, Index k) HEDGEROW_INLINE_BODY {
    const V d = LoadPart(x + i, k) - m;
    return d * d;
  });
  return {m, static_cast<float>(1 / __builtin_sqrt(squares / static_cast<double>(n) + eps))};
}

Status group_norm(const Call& call) {
  const Index N = call.size(0), C = call.size(1), S = call.size(2), G = call.size(3), channels = C / G;
  const float *x = call.f32(0), *w = call.f32(1), *b = call.f32(2);
  float *y = call.f32(3), *mean = call.f32(4), *rstd = call.f32(5);
  const double eps = call.op.floats[0];
  ForRanges(call, N * G, static_cast<double>(channels * S) * 0.4, 1, [=](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      const Moments moments = MomentsOf(channels * S, x + i * channels * S, eps);
      mean[i] = moments.mean;
      rstd[i] = moments.rstd;
      for (Index c = i % G * channels; c < (i % G + 1) * channels; ++c) {
        const Index at = (i / G * C + c) * S;
        const float m = moments.mean, slope = w[c] * moments.rstd, shift = b[c];
        Map(S, x + at, y + at, [=](V v) HEDGEROW_INLINE_BODY { return (v - m) * slope + shift; });
      }
    }
  });
  return kOk;
}

Status group_norm_grad(const Call& call) {
  const Index N = call.size(0), C = call.size(1), S = call.size(2), G = call.size(3), channels = C / G;
  const float *g = call.f32(0), *x = call.f32(1), *w = call.f32(2), *mean = call.f32(3), *rstd = call.f32(4);
  float *dx = call.f32(5), *dw = call.f32(6), *db = call.f32(7);
  const double count = static_cast<double>(channels) * static_cast<double>(S);
  Zero(C, dw);
  Zero(C, db);
  for (Index i = 0; i < N * G; ++i) {
    const float m = mean[i], r = rstd[i];
    double sum_g = 0, sum_gx = 0;
    for (Index c = i % G * channels; c < (i % G + 1) * channels; ++c) {
      const float *gp = g + (i / G * C + c) * S, *xp = x + (i / G * C + c) * S;
      const double plane_g = Sum(S, gp);
      const double plane_gx =
          r * SumOf(S, [=](Index j, Index k) HEDGEROW_INLINE_BODY {
            return LoadPart(gp + j, k) * (LoadPart(xp + j, k) - m);
          });
      db[c] += static_cast<float>(plane_g);
      dw[c] += static_cast<float>(plane_gx);
      sum_g += w[c] * plane_g;
      sum_gx += w[c] * plane_gx;
    }
    const float mean_g = static_cast<float>(sum_g / count), mean_gx = static_cast<float>(sum_gx / count) * r;
    for (Index c = i % G * channels; c < (i % G + 1) * channels; ++c) {
      const Index at = (i / G * C + c) * S;
      const float weight = w[c];
      Map(S, g + at, x + at, dx + at, [=](V d, V v) HEDGEROW_INLINE_BODY {
        return r * (weight * d - mean_g - (v - m) * mean_gx);
      });
    }
  }
  return kOk;
}

Status layer_norm(const Call& call) {
  const Index R = call.size(0), D = call.size(1);
  const float *x = call.f32(0), *w = call.f32(1), *b = call.f32(2);
  float *y = call.f32(3), *mean = call.f32(4), *rstd = call.f32(5);
  const double eps = call.op.floats[0];
  ForRanges(call, R, static_cast<double>(D) * 0.4, 1, [=](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      const float* from = x + i * D;
      float* to = y + i * D;
      const Moments moments = MomentsOf(D, from, eps);
      mean[i] = moments.mean;
      rstd[i] = moments.rstd;
      ForVectors(D, [=](Index j, Index k) HEDGEROW_INLINE_BODY {
        const V scaled = (LoadPart(from + j, k) - moments.mean) * moments.rstd * (w ? LoadPart(w + j, k) : Splat(1));
        StorePart(to + j, b ? scaled + LoadPart(b + j, k) : scaled, k);
      });
    }
  });
  return kOk;
}

// dw and db of columns [first, last).
void LayerNormParameters(Index R, Index D, Index first, Index last, const float* g, const float* x, const float* mean,
                         const float* rstd, float* dw, float* db) {
  ForVectors(last - first, [=](Index at, Index k) HEDGEROW_INLINE_BODY {
    const Index j = first + at;
    LaneSums sum_g, sum_gx;
    for (Index i = 0; i < R;) {
      V block_g{}, block_gx{};
      for (const Index end = Min(R, i + kSumBlock); i < end; ++i) {
        const V d = LoadPart(g + i * D + j, k);
        block_g += d;
        block_gx += d * ((LoadPart(x + i * D + j, k) - mean[i]) * rstd[i]);
      }
      sum_g.Add(block_g);
      sum_gx.Add(block_gx);
    }
    for (Index lane = 0; lane < k; ++lane) {
      if (dw) dw[j + lane] = static_cast<float>(sum_gx[lane]);
      if (db) db[j + lane] = static_cast<float>(sum_g[lane]);
    }
  });
}

Status layer_norm_grad(const Call& call) {
  const Index R = call.size(0), D = call.size(1);
  const float *g = call.f32(0), *x = call.f32(1), *w = call.f32(2), *mean = call.f32(3), *rstd = call.f32(4);
  float *dx = call.f32(5), *dw = call.f32(6), *db = call.f32(7);
  // Parameters first: dx may take g's place.
  if (dw || db) {
    ForRanges(call, D, static_cast<double>(R) * 0.2, kLine, [=](Index first, Index last) {
      LayerNormParameters(R, D, first, last, g, x, mean, rstd, dw, db);
    });
  }
  ForRanges(call, R, static_cast<double>(D) * 0.4, 1, [=](Index first, Index last) {
    const double n = static_cast<double>(D);
    for (Index i = first; i < last; ++i) {
      const float *gp = g + i * D, *xp = x + i * D, m = mean[i], r = rstd[i];
      float* to = dx + i * D;
      auto weighted = [=](Index j, Index k) HEDGEROW_INLINE_BODY {
        return w ? LoadPart(gp + j, k) * LoadPart(w + j, k) : LoadPart(gp + j, k);
      };
      const float mean_g = static_cast<float>(SumOf(D, weighted) / n);
      const float mean_gx = static_cast<float>(SumOf(D, [=](Index j, Index k) HEDGEROW_INLINE_BODY {
        return weighted(j, k) * (LoadPart(xp + j, k) - m);
      }) / n * r * r);
      ForVectors(D, [=](Index j, Index k) HEDGEROW_INLINE_BODY {
        StorePart(to + j, r * (weighted(j, k) - mean_g - (LoadPart(xp + j, k) - m) * mean_gx), k);
      });
    }
  });
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_NORM_GENERIC_H_
