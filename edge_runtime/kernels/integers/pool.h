// max_pool_s8 and avg_pool_s8 (ops.h): channels last, so a window's elements are whole vectors.
#ifndef HEDGEROW_INTEGERS_POOL_H_
#define HEDGEROW_INTEGERS_POOL_H_

#include "integers/band.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

constexpr Index kBytes = 16;
using Bytes = int8_t __attribute__((vector_size(16)));
// Channels that are summed side by side.
constexpr Index kSums = 64;

// The first n <= kBytes of them. Where a whole vector may be read or written at p, kWhole spares the question how many
// are wanted: what is read past n does not matter, and what is written there comes later.
template <bool kWhole>
HEDGEROW_INLINE Bytes LoadBytes(const int8_t* p, Index n) {
  Bytes v{};
  if (kWhole || n == kBytes) {
    std::memcpy(&v, p, kBytes);
  } else {
    for (Index i = 0; i < n; ++i) v[i] = p[i];
  }
  return v;
}

template <bool kWhole>
HEDGEROW_INLINE void StoreBytes(int8_t* p, Bytes v, Index n) {
  if (kWhole || n == kBytes) {
    std::memcpy(p, &v, kBytes);
  } else {
    for (Index i = 0; i < n; ++i) p[i] = v[i];
  }
}

// A row of outputs. kSide: the window's sides where it is a square inside the image, so that its loops unroll; else 0.
template <bool kWhole, int kSide>
void MaxOfRow(const ImageGeometry& s, const int8_t* image, Index top, Bytes low, Bytes high, int8_t* y) {
  const Index k0 = Max(0, -top), rows = kSide ? kSide : Min(s.kh, s.H - top) - k0, pitch = s.W * s.C;
  for (Index ox = 0; ox < s.OW; ++ox) {
    const Index left = ox * s.sw - s.pw, l0 = kSide ? 0 : Max(0, -left);
    const Index columns = kSide ? kSide : Min(s.kw, s.W - left) - l0;
    const int8_t* corner = image + (top + k0) * pitch + (left + l0) * s.C;
    for (Index c = 0; c < s.C; c += kBytes, corner += kBytes) {
      const Index n = Min(kBytes, s.C - c);
      Bytes best = low;
      for (Index k = 0; k < rows; ++k) {
        for (Index l = 0; l < columns; ++l) {
          const Bytes v = LoadBytes<kWhole>(corner + k * pitch + l * s.C, n);
          best = v > best ? v : best;
        }
      }
      StoreBytes<kWhole>(y, best < high ? best : high, n);
      y += n;
    }
  }
}

Status max_pool_s8(const Call& call) {
  const ImageGeometry s = ImageGeometry::Of(call, 4, true);
  const auto* x = reinterpret_cast<const int8_t*>(call.u8(0));
  auto* y = reinterpret_cast<int8_t*>(call.u8(1));
  const auto low = static_cast<int8_t>(call.size(10)), high = static_cast<int8_t>(call.size(11));
  const bool pairs = s.kh == 2 && s.kw == 2 && s.ph == 0 && s.pw == 0;
  const double ns = static_cast<double>(s.OW * s.C * s.kh) * static_cast<double>(s.kw) * 0.02;
  ForRanges(call, s.N * s.OH, ns, 1, [=](Index first, Index last) {
    const Index image_bytes = s.H * s.W * s.C, row_bytes = s.OW * s.C;
    for (Index row = first; row < last; ++row) {
      const Index image = row / s.OH, top = row % s.OH * s.sh - s.ph;
      // Neither reads go past x, nor writes past the rows of this range: another thread's begin there.
      const Index end = image * image_bytes + Min(s.H, top + s.kh) * s.W * s.C;
      const bool whole = end + kBytes <= s.N * image_bytes && (last - row - 1) * row_bytes >= kBytes;
      const auto max = pairs ? whole ? MaxOfRow<true, 2> : MaxOfRow<false, 2>
                             : whole ? MaxOfRow<true, 0> : MaxOfRow<false, 0>;
      max(s, x + image * image_bytes, top, low - Bytes{}, high - Bytes{}, y + row * row_bytes);
    }
  });
  return kOk;
}

Status avg_pool_s8(const Call& call) {
  const ImageGeometry s = ImageGeometry::Of(call, 4, false);
  const auto* x = reinterpret_cast<const int8_t*>(call.u8(0));
  auto* y = reinterpret_cast<int8_t*>(call.u8(1));
  const Rounding rounding(call.size(9), call.size(10), call.size(11));
  const Index window = s.kh * s.kw, places = s.N * s.OH * s.OW;
  const auto multiplier = static_cast<float>(call.op.floats[0] / static_cast<double>(window));
  const auto less = static_cast<int32_t>(window * call.size(8));
  ForRanges(call, places, static_cast<double>(window * s.C) * 0.05, 1, [=](Index first, Index last) {
    for (Index place = first; place < last; ++place) {
      const Index image = place / (s.OH * s.OW), row = place / s.OW % s.OH, column = place % s.OW;
      const int8_t* corner = x + ((image * s.H + row * s.sh) * s.W + column * s.sw) * s.C;
      int8_t* out = y + place * s.C;
      for (Index c = 0; c < s.C; c += kSums) {
        const Index n = Min(kSums, s.C - c);
        int32_t sum[kSums];
        for (Index i = 0; i < n; ++i) sum[i] = -less;
        for (Index k = 0; k < s.kh; ++k) {
          const int8_t* from = corner + k * s.W * s.C + c;
          for (Index l = 0; l < s.kw; ++l, from += s.C) {
            for (Index i = 0; i < n; ++i) sum[i] += from[i];
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
