// What looks at one element at a time: into bytes and back, sums, products and tables of them (ops.h).
#ifndef HEDGEROW_INTEGERS_POINTWISE_H_
#define HEDGEROW_INTEGERS_POINTWISE_H_

#include "integers/rounding.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

// Pixels between one layout and the other, through a small buffer.
constexpr Index kPixels = 64;

HEDGEROW_INLINE int8_t QuantizeOne(float x, float scale, const Rounding& rounding) {
  const float t = x / scale;
  return rounding(t == t ? t : 0.0f);
}

// n <= kPixels pixels, all channels of each.
HEDGEROW_INLINE void QuantizePixels(Index C, Index S, Index n, const float* x, float scale, const Rounding& rounding,
                                    int8_t* y) {
  for (Index c = 0; c < C; ++c) {
    int8_t row[kPixels];
    for (Index i = 0; i < n; ++i) row[i] = QuantizeOne(x[c * S + i], scale, rounding);
    for (Index i = 0; i < n; ++i) y[i * C + c] = row[i];
  }
}

// The same for three channels: vectors of pixels, put into turn by shuffles.
HEDGEROW_INLINE void QuantizeColours(Index S, const float* x, float scale, const Rounding& rounding, int8_t* y) {
  int8_t rows[3][kPixels];
  for (Index c = 0; c < 3; ++c) {
    for (Index i = 0; i < kPixels; ++i) rows[c][i] = QuantizeOne(x[c * S + i], scale, rounding);
  }
  for (Index i = 0; i < kPixels; ++i) {
    y[3 * i] = rows[0][i];
    y[3 * i + 1] = rows[1][i];
    y[3 * i + 2] = rows[2][i];
  }
}

void QuantizeImage(Index C, Index S, const float* x, float scale, const Rounding& rounding, int8_t* y) {
  Index s = 0;
  for (; C == 3 && s + kPixels <= S; s += kPixels) QuantizeColours(S, x + s, scale, rounding, y + s * C);
  for (; s < S; s += kPixels) QuantizePixels(C, S, Min(kPixels, S - s), x + s, scale, rounding, y + s * C);
}

Status quantize_s8(const Call& call) {
  const Index N = call.size(0), C = call.size(1), S = call.size(2);
  const Rounding rounding(call.size(3), -128, 127);
  const float scale = call.real(0), *x = call.f32(0);
  auto* y = reinterpret_cast<int8_t*>(call.u8(1));
  if (C == 1 || S == 1) {
    ForRanges(call, N * C * S, 0.2, kLine, [=](Index first, Index last) {
      for (Index i = first; i < last; ++i) y[i] = QuantizeOne(x[i], scale, rounding);
    });
    return kOk;
  }
  ForRanges(call, N, static_cast<double>(C * S) * 0.5, 1, [=](Index first, Index last) {
    for (Index n = first; n < last; ++n) QuantizeImage(C, S, x + n * C * S, scale, rounding, y + n * C * S);
  });
  return kOk;
}

Status dequantize_s8(const Call& call) {
  const Index N = call.size(0), C = call.size(1), S = call.size(2);
  const auto zero = static_cast<int32_t>(call.size(3));
  const float scale = call.real(0);
  const auto* x = reinterpret_cast<const int8_t*>(call.u8(0));
  float* y = call.f32(1);
  if (C == 1 || S == 1) {
    ForRanges(call, N * C * S, 0.1, kLine, [=](Index first, Index last) {
      for (Index i = first; i < last; ++i) y[i] = static_cast<float>(x[i] - zero) * scale;
    });
    return kOk;
  }
  ForRanges(call, N, static_cast<double>(C * S) * 0.3, 1, [=](Index first, Index last) {
    for (Index n = first; n < last; ++n) {
      const int8_t* from = x + n * C * S;
      float* to = y + n * C * S;
      for (Index c = 0; c < C; ++c) {
        for (Index s = 0; s < S; ++s) to[c * S + s] = static_cast<float>(from[s * C + c] - zero) * scale;
      }
    }
  });
  return kOk;
}

Status add_s8(const Call& call) {
  const Index n = call.size(0);
  const auto a_zero = static_cast<int32_t>(call.size(1)), b_zero = static_cast<int32_t>(call.size(2));
  const Rounding rounding(call.size(3), call.size(4), call.size(5));
  const float a_scale = call.real(0), b_scale = call.real(1);
  const auto *a = reinterpret_cast<const int8_t*>(call.u8(0)), *b = reinterpret_cast<const int8_t*>(call.u8(1));
  auto* y = reinterpret_cast<int8_t*>(call.u8(2));
  ForRanges(call, n, 0.15, 4 * kLine, [=](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      y[i] = rounding(static_cast<float>(a[i] - a_zero) * a_scale + static_cast<float>(b[i] - b_zero) * b_scale);
    }
  });
  return kOk;
}

Status mul_s8(const Call& call) {
  const Index n = call.size(0);
  const auto a_zero = static_cast<int32_t>(call.size(1)), b_zero = static_cast<int32_t>(call.size(2));
  const Rounding rounding(call.size(3), call.size(4), call.size(5));
  const float scale = call.real(0);
  const auto *a = reinterpret_cast<const int8_t*>(call.u8(0)), *b = reinterpret_cast<const int8_t*>(call.u8(1));
  auto* y = reinterpret_cast<int8_t*>(call.u8(2));
  ForRanges(call, n, 0.15, 4 * kLine, [=](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      y[i] = rounding(static_cast<float>((a[i] - a_zero) * (b[i] - b_zero)) * scale);
    }
  });
  return kOk;
}

Status lookup_s8(const Call& call) {
  const auto* x = reinterpret_cast<const int8_t*>(call.u8(0));
  const auto* table = reinterpret_cast<const int8_t*>(call.u8(1));
  auto* y = reinterpret_cast<int8_t*>(call.u8(2));
  ForRanges(call, call.size(0), 0.4, 4 * kLine, [=](Index first, Index last) {
    for (Index i = first; i < last; ++i) y[i] = table[x[i] + 128];
  });
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_POINTWISE_H_
