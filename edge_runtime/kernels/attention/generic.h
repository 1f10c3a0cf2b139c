// Attention in tiles of kQueries x kKeys scores on the stack, so that the scores are never all there at once: softmax
// is carried along the keys with a running maximum, and the gradient computes the scores again from lse (Dao et al.
// 2022).
#ifndef HEDGEROW_ATTENTION_GENERIC_H_
#define HEDGEROW_ATTENTION_GENERIC_H_

#include <cmath>

#include "attention/softmax.h"
#include "gemm/generic.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

constexpr Index kQueries = 32, kKeys = 128;

struct Attention {
  explicit Attention(const Call& call)
      : P(call.size(0)), Tq(call.size(1)), Tk(call.size(2)), D(call.size(3)), Dv(call.size(4)),
        causal(call.size(5) != 0), scale(call.real(0)) {}

  // How many of the `keys` columns from `key` on a row sees.
  Index Seen(Index query, Index key, Index keys) const {
    return causal ? Max(0, Min(keys, query + 1 - key)) : keys;
  }
  // f(first query, queries) for each band of queries of one plane.
  template <typename F>
  HEDGEROW_INLINE void ForQueries(F f) const {
    for (Index i = 0; i < Tq; i += kQueries) f(i, Min(kQueries, Tq - i));
  }
  // f(first key, keys) for each tile in which one of the queries before `last` sees a column.
  template <typename F>
  HEDGEROW_INLINE void ForKeys(Index last, F f) const {
    const Index end = causal ? Min(Tk, last) : Tk;
    for (Index j = 0; j < end; j += kKeys) f(j, Min(kKeys, end - j));
  }

  // What a row takes: its products and its exponentials.
  double RowNs() const {
    return static_cast<double>(Tk) * (static_cast<double>(D + Dv) / 20 + 0.5) * (causal ? 0.5 : 1);
  }

  Index P, Tq, Tk, D, Dv;
  bool causal;
  float scale;
};

// A band of queries on its way along the keys: y is sum exp(score - top) v so far, for each row.
void AttendBand(const Attention& s, Index i, Index rows, const float* q, const float* k, const float* v, float* y,
                float* lse) {
  float tile[kQueries * kKeys], top[kQueries];
  double sum[kQueries] = {};
  s.ForKeys(i + rows, [&](Index j, Index keys) {
    Gemm(Form::kNT, rows, keys, s.D, q, s.D, k + j * s.D, s.D, Beta::kZero, tile, kKeys);
    for (Index r = 0; r < rows; ++r) {
      float* scores = tile + r * kKeys;
      const Index seen = s.Seen(i + r, j, keys);
      Zero(keys - seen, scores + seen);
      if (seen == 0) continue;  // never in the first tile: every row sees column 0
      const float scale = s.scale;
      Map(seen, scores, scores, [=](V x) { return scale * x; });
      const float highest = MaxOf(seen, scores);
      const float now = j == 0 || highest > top[r] ? highest : top[r];
      if (j > 0 && now != top[r]) {
        const float shrink = Exp(Splat(top[r] - now))[0];
        sum[r] *= shrink;
        Map(s.Dv, y + r * s.Dv, y + r * s.Dv, [=](V x) { return x * shrink; });
      }
      top[r] = now;
      Map(seen, scores, scores, [=](V x) { return ExpOfNegative(x - now); });
      sum[r] += Sum(seen, scores);
    }
    Gemm(Form::kNN, rows, s.Dv, keys, tile, kKeys, v + j * s.Dv, s.Dv, j == 0 ? Beta::kZero : Beta::kOne, y, s.Dv);
  });
  for (Index r = 0; r < rows; ++r) {
    const float part = static_cast<float>(1 / sum[r]);
    Map(s.Dv, y + r * s.Dv, y + r * s.Dv, [=](V x) { return x * part; });
    lse[r] = static_cast<float>(top[r] + std::log(sum[r]));
  }
}

Status attention(const Call& call) {
  const Attention s(call);
  const float *q = call.f32(0), *k = call.f32(1), *v = call.f32(2);
  float *y = call.f32(3), *lse = call.f32(4);
  const Index bands = (s.Tq + kQueries - 1) / kQueries;
  ForRanges(call, s.P * bands, s.RowNs() * kQueries, 1, [=](Index first, Index last) {
    for (Index band = first; band < last; ++band) {
      const Index p = band / bands, i = band % bands * kQueries, row = p * s.Tq + i;
      AttendBand(s, i, Min(kQueries, s.Tq - i), q + row * s.D, k + p * s.Tk * s.D, v + p * s.Tk * s.Dv, y + row * s.Dv,
                 lse + row);
    }
  });
  return kOk;
}

// One band's part of the gradients of one plane; dk and dv are added to.
void BandGradient(const Attention& s, Index i, Index rows, const float* g, const float* q, const float* k,
                  const float* v, const float* y, const float* lse, float* dq, float* dk, float* dv) {
  float probs[kQueries * kKeys], dscores[kQueries * kKeys], mean[kQueries];
  for (Index r = 0; r < rows; ++r) mean[r] = Dot(s.Dv, g + r * s.Dv, y + r * s.Dv);
  s.ForKeys(i + rows, [&](Index j, Index keys) {
    Gemm(Form::kNT, rows, keys, s.D, q, s.D, k + j * s.D, s.D, Beta::kZero, probs, kKeys);
    Gemm(Form::kNT, rows, keys, s.Dv, g, s.Dv, v + j * s.Dv, s.Dv, Beta::kZero, dscores, kKeys);
    for (Index r = 0; r < rows; ++r) {
      float *prob = probs + r * kKeys, *dscore = dscores + r * kKeys;
      const Index seen = s.Seen(i + r, j, keys);
      const float scale = s.scale, log_sum = lse[r], shift = mean[r];
      Map(seen, prob, prob, [=](V x) { return ExpOfNegative(scale * x - log_sum); });
      Map(seen, prob, dscore, dscore, [=](V p, V d) { return scale * p * (d - shift); });
      Zero(keys - seen, prob + seen);
      Zero(keys - seen, dscore + seen);
    }
    Gemm(Form::kNN, rows, s.D, keys, dscores, kKeys, k + j * s.D, s.D, j == 0 ? Beta::kZero : Beta::kOne, dq, s.D);
    Gemm(Form::kTN, keys, s.D, rows, dscores, kKeys, q, s.D, Beta::kOne, dk + j * s.D, s.D);
    Gemm(Form::kTN, keys, s.Dv, rows, probs, kKeys, g, s.Dv, Beta::kOne, dv + j * s.Dv, s.Dv);
  });
}

Status attention_grad(const Call& call) {
  const Attention s(call);
  const float *g = call.f32(0), *q = call.f32(1), *k = call.f32(2), *v = call.f32(3), *y = call.f32(4);
  const float* lse = call.f32(5);
  float *dq = call.f32(6), *dk = call.f32(7), *dv = call.f32(8);
  ForRanges(call, s.P, s.RowNs() * 2.5 * static_cast<double>(s.Tq), 1, [=](Index first, Index last) {
    Zero((last - first) * s.Tk * s.D, dk + first * s.Tk * s.D);
    Zero((last - first) * s.Tk * s.Dv, dv + first * s.Tk * s.Dv);
    for (Index p = first; p < last; ++p) {
      const Index key = p * s.Tk;
      s.ForQueries([&](Index i, Index rows) {
        const Index row = p * s.Tq + i;
        BandGradient(s, i, rows, g + row * s.Dv, q + row * s.D, k + key * s.D, v + key * s.Dv, y + row * s.Dv,
                     lse + row, dq + row * s.D, dk + key * s.D, dv + key * s.Dv);
      });
    }
  });
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ATTENTION_GENERIC_H_
