// Losses over rows of logits: cross entropy, focal, distillation (ops.h). A row's logits enter only by their distance
// from the largest, so logits of any finite size are safe.
#ifndef HEDGEROW_LOSS_CLASSES_H_
#define HEDGEROW_LOSS_CLASSES_H_

#include <cmath>

#include "attention/softmax.h"

namespace hedgerow {
namespace {

// log of a row's softmax: (z[c] - top) - log_sum.
struct LogSoftmax {
  LogSoftmax(Index C, const float* z) : top(MaxOf(C, z)), sum(SumOfExp(C, z, top)), log_sum(std::log(sum)) {}
  double operator()(float z) const { return (static_cast<double>(z) - top) - log_sum; }

  float top;
  double sum, log_sum;
};

// The rows of a class loss, and which of them count. Ints R C B ignore; buffers z target weight? rows norm from `slot`.
struct ClassRows {
  ClassRows(const Call& call, int slot)
      : R(call.size(0)), C(call.size(1)), counted(call.count(slot + 3, call.size(2)) * (R / call.size(2))),
        ignore(call.op.ints[3]), z(call.f32(slot)), target(call.i64(slot + 1)), weight(call.f32(slot + 2)),
        norm(call.value(slot + 4)) {}

  // f(row, target) for every row that counts, other(row) for the rest.
  template <typename F, typename Other>
  Status ForEach(F f, Other other) const {
    return ForSome(0, R, f, other);
  }
  // The same for f and other that write what belongs to their row and nothing else.
  template <typename F, typename Other>
  Status ForEachShared(const Call& call, F f, Other other) const {
    int32_t status = kOk, *const found = &status;
    ForRanges(call, R, static_cast<double>(C) * 1.2 + 20, 1, [=, *this](Index first, Index last) {
      const Status own = ForSome(first, last, f, other);
      if (own != kOk) __atomic_store_n(found, int32_t{own}, __ATOMIC_RELAXED);
    });
    return static_cast<Status>(status);
  }
  template <typename F, typename Other>
  HEDGEROW_INLINE Status ForSome(Index first, Index last, F f, Other other) const {
    for (Index r = first; r < last; ++r) {
      // Arena contents: read once, and looked at before it is used.
      const int64_t t = r < counted ? *static_cast<const volatile int64_t*>(target + r) : ignore;
      if (r >= counted || t == ignore) {
        other(r);
      } else if (t < 0 || t >= C) {
        return kOutOfRange;
      } else {
        f(r, static_cast<Index>(t));
      }
    }
    return kOk;
  }
  double WeightOf(Index c) const { return weight ? weight[c] : 1.0; }

  Index R, C, counted;
  int64_t ignore;
  const float* z;
  const int64_t* target;
  const float* weight;
  double norm;
};

// dz = slope (softmax(z) - [c = t]); the one gradient that cross entropy and focal are made of.
void SoftmaxMinusOneHot(Index C, const float* z, const LogSoftmax& row, Index t, double slope, float* dz) {
  const float top = row.top, part = static_cast<float>(slope / row.sum);
  Map(C, z, dz, [=](V v) HEDGEROW_INLINE_BODY { return ExpOfNegative(v - top) * part; });
  dz[t] -= static_cast<float>(slope);
}

Status cross_entropy(const Call& call) {
  const ClassRows rows(call, 0);
  const Index C = rows.C;
  const double smoothing = call.op.floats[0];
  double loss = 0;
  const Status status = rows.ForEach(
      [&](Index r, Index t) HEDGEROW_INLINE_BODY {
        const float* z = rows.z + r * C;
        const LogSoftmax row(C, z);
        loss -= (1 - smoothing) * rows.WeightOf(t) * row(z[t]);
        if (smoothing == 0) return;
        const double others = SumOf(C, [&](Index c, Index k) HEDGEROW_INLINE_BODY {
          const V distance = (row.top - LoadPart(z + c, k)) + static_cast<float>(row.log_sum);
          return rows.weight ? LoadPart(rows.weight + c, k) * distance : distance;
        });
        loss += smoothing / static_cast<double>(C) * others;
      },
      [](Index) HEDGEROW_INLINE_BODY {});
  *call.f32(5) = static_cast<float>(rows.norm * loss);
  return status;
}

Status cross_entropy_grad(const Call& call) {
  const ClassRows rows(call, 1);
  const Index C = rows.C;
  float* dz = call.f32(6);
  const double scale = call.value(0) * rows.norm, smoothing = call.op.floats[0];
  const double share = smoothing / static_cast<double>(C);
  const double all_weights = rows.weight ? Sum(C, rows.weight) : static_cast<double>(C);
  return rows.ForEachShared(
      call,
      [=](Index r, Index t) HEDGEROW_INLINE_BODY {
        const float* z = rows.z + r * C;
        float* out = dz + r * C;
        const LogSoftmax row(C, z);
        const double own = (1 - smoothing) * rows.WeightOf(t);
        if (smoothing == 0) return SoftmaxMinusOneHot(C, z, row, t, scale * own, out);
        const float part = static_cast<float>(scale * (own + share * all_weights) / row.sum);
        const float pull = static_cast<float>(scale * share), top = row.top;
        ForVectors(C, [&](Index c, Index k) HEDGEROW_INLINE_BODY {
          const V weight = rows.weight ? LoadPart(rows.weight + c, k) : Splat(1);
          StorePart(out + c, ExpOfNegative(LoadPart(z + c, k) - top) * part - pull * weight, k);
        });
        out[t] -= static_cast<float>(scale * own);
      },
      [=](Index r) HEDGEROW_INLINE_BODY { Zero(C, dz + r * C); });
}

Status focal(const Call& call) {
  const ClassRows rows(call, 0);
  const double gamma = call.op.floats[0];
  double loss = 0;
  const Status status = rows.ForEach(
      [&](Index r, Index t) HEDGEROW_INLINE_BODY {
        const float* z = rows.z + r * rows.C;
        const double log_p = LogSoftmax(rows.C, z)(z[t]);
        loss -= rows.WeightOf(t) * std::pow(-std::expm1(log_p), gamma) * log_p;
      },
      [](Index) HEDGEROW_INLINE_BODY {});
  *call.f32(5) = static_cast<float>(rows.norm * loss);
  return status;
}

Status focal_grad(const Call& call) {
  const ClassRows rows(call, 1);
  float* dz = call.f32(6);
  const double scale = call.value(0) * rows.norm, gamma = call.op.floats[0];
  return rows.ForEachShared(
      call,
      [=](Index r, Index t) HEDGEROW_INLINE_BODY {
        const float* z = rows.z + r * rows.C;
        const LogSoftmax row(rows.C, z);
        const double log_p = row(z[t]), rest = -std::expm1(log_p);
        // -d/d(log p) of (1 - p)^gamma (-log p); where p = 1 the second term's limit is 0.
        double slope = std::pow(rest, gamma);
        if (rest != 0) slope -= gamma * std::pow(rest, gamma - 1) * std::exp(log_p) * log_p;
        SoftmaxMinusOneHot(rows.C, z, row, t, scale * rows.WeightOf(t) * slope, dz + r * rows.C);
      },
      [=](Index r) HEDGEROW_INLINE_BODY { Zero(rows.C, dz + r * rows.C); });
}

// log softmax of a row of z / temperature, in double.
struct Tempered {
  Tempered(Index C, const float* z, double temperature) : top(MaxOf(C, z)), rate(1 / temperature) {
    double sum = 0;
    for (Index c = 0; c < C; ++c) sum += std::exp((z[c] - top) * rate);
    log_sum = std::log(sum);
  }
  double operator()(float z) const { return (z - top) * rate - log_sum; }

  double top, rate, log_sum;
};

Status distill(const Call& call) {
  const Index R = call.size(0), C = call.size(1), B = call.size(2);
  const float *z = call.f32(0), *t = call.f32(1);
  const double temperature = call.op.floats[0];
  double loss = 0;
  for (const float* end = z + call.count(2, B) * (R / B) * C; z < end; z += C, t += C) {
    const Tempered student(C, z, temperature), teacher(C, t, temperature);
    for (Index c = 0; c < C; ++c) {
      const double log_q = teacher(t[c]), q = std::exp(log_q);
      if (q != 0) loss += q * (log_q - student(z[c]));  // 0 log 0 = 0
    }
  }
  *call.f32(4) = static_cast<float>(call.value(3) * temperature * temperature * loss);
  return kOk;
}

Status distill_grad(const Call& call) {
  const Index R = call.size(0), C = call.size(1), B = call.size(2), counted = call.count(3, B) * (R / B);
  const float *z = call.f32(1), *t = call.f32(2);
  float* dz = call.f32(5);
  const double temperature = call.op.floats[0];
  const double scale = static_cast<double>(call.value(0)) * call.value(4) * temperature;
  for (Index r = 0; r < counted; ++r, z += C, t += C, dz += C) {
    const Tempered student(C, z, temperature), teacher(C, t, temperature);
    for (Index c = 0; c < C; ++c) {
      dz[c] = static_cast<float>(scale * (std::exp(student(z[c])) - std::exp(teacher(t[c]))));
    }
  }
  Zero((R - counted) * C, dz);
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_LOSS_CLASSES_H_
