// max_pool_s8 and avg_pool_s8 (ops.h): channels last, so a window's elements are whole vectors.
#ifndef HEDGEROW_INTEGERS_POOL_H_
#define HEDGEROW_INTEGERS_POOL_H_

#include "integers/band.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

using Bytes = int8_t __attribute__((vector_size(16)));
constexpr Index kBytes = 16;

// n <= kBytes of them, and nothing past `end`.
HEDGEROW_INLINE Bytes LoadBytes(const int8_t* p, Index n, const int8_t* end) {
  Bytes v{};
  std::memcpy(&v, p, static_cast<size_t>(end - p >= kBytes ? kBytes : n));
  return v;
}

Status max_pool_s8(const Call& call) {
  const ImageGeometry s = ImageGeometry::Of(call, 4, true);
  const auto* x = reinterpret_cast<const int8_t*>(call.u8(0));
  auto* y = reinterpret_cast<int8_t*>(call.u8(1));
  const int8_t *end = x + s.N * s.H * s.W * s.C;
  const auto low = static_cast<int8_t>(call.size(10)), high = static_cast<int8_t>(call.size(11));
  const Index rows = s.N * s.OH;
  ForRanges(call, rows, static_cast<double>(s.OW * s.C * s.kh) * 0.02 * static_cast<double>(s.kw), 1,
            [=](Index first, Index last) {
    const Bytes floor = low - Bytes{}, ceiling = high - Bytes{};
    int8_t *out = y + first * s.OW * s.C, *stop = y + last * s.OW * s.C;
    for (Index row = first; row < last; ++row) {
      const int8_t* image = x + row / s.OH * s.H * s.W * s.C;
      const Index top = row % s.OH * s.sh - s.ph, k0 = Max(0, -top), k1 = Min(s.kh, s.H - top);
      for (Index ox = 0; ox < s.OW; ++ox) {
        const Index left = ox * s.sw - s.pw, l0 = Max(0, -left), l1 = Min(s.kw, s.W - left);
        for (Index c = 0; c < s.C; c += kBytes) {
          const Index n = Min(kBytes, s.C - c);
          Bytes best = floor;
          for (Index k = k0; k < k1; ++k) {
            const int8_t* from = image + ((top + k) * s.W + left + l0) * s.C + c;
            for (Index l = l0; l < l1; ++l, from += s.C) {
              const Bytes v = LoadBytes(from, n, end);
              best = v > best ? v : best;
            }
          }
          best = best < ceiling ? best : ceiling;
          // What goes past n is written again by whoever comes next, up to the range's end.
          std::memcpy(out, &best, static_cast<size_t>(stop - out >= kBytes ? kBytes : n));
          out += n;
        }
      }
    }
  });
  return kOk;
}

Status avg_pool_s8(const Call& call) {
  const ImageGeometry s = ImageGeometry::Of(call, 4, false);
  const auto* x = reinterpret_cast<const int8_t*>(call.u8(0));
  auto* y = reinterpret_cast<int8_t*>(call.u8(1));
  const int32_t zero = static_cast<int32_t>(call.size(8));
  const Rounding rounding(call.size(9), call.size(10), call.size(11));
  const Index window = s.kh * s.kw, places = s.N * s.OH * s.OW;
  const auto multiplier = static_cast<float>(call.op.floats[0] / static_cast<double>(window));
  const auto less = static_cast<int32_t>(window) * zero;
  ForRanges(call, places, static_cast<double>(window * s.C) * 0.1, 1, [=](Index first, Index last) {
    for (Index place = first; place < last; ++place) {
      const Index image = place / (s.OH * s.OW), row = place / s.OW % s.OH, column = place % s.OW;
      const int8_t* corner = x + ((image * s.H + row * s.sh) * s.W + column * s.sw) * s.C;
      int8_t* out = y + place * s.C;
      for (Index c = 0; c < s.C; c += kBytes) {
        const Index n = Min(kBytes, s.C - c);
        int32_t sum[kBytes];
        for (Index i = 0; i < kBytes; ++i) sum[i] = -less;
        for (Index k = 0; k < s.kh; ++k) {
          const int8_t* from = corner + k * s.W * s.C + c;
          for (Index l = 0; l < s.kw; ++l, from += s.C) {
            if (n == kBytes) {
              for (Index i = 0; i < kBytes; ++i) sum[i] += from[i];
            } else {
              for (Index i = 0; i < n; ++i) sum[i] += from[i];
            }
          }
        }
        for (Index i = 0; i < n; ++i) out[c + i] = rounding(static_cast<float>(sum[i]) * multiplier);
      }
    }
  });
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_POOL_H_
