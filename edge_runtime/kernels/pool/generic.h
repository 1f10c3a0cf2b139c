// Max and average pooling, and their gradients (ops.h).
#ifndef HEDGEROW_POOL_GENERIC_H_
#define HEDGEROW_POOL_GENERIC_H_

#include "conv/geometry.h"
#include "isa/transpose.h"

namespace hedgerow {
namespace {

struct Pooling {
  // Average pooling has no padding: its op has no such ints.
  Pooling(const Call& call, bool padded)
      : P(call.size(0)), H(call.size(1)), W(call.size(2)), kh(call.size(3)), kw(call.size(4)), sh(call.size(5)),
        sw(call.size(6)), ph(padded ? call.size(7) : 0), pw(padded ? call.size(8) : 0), OH((H + 2 * ph - kh) / sh + 1),
        OW((W + 2 * pw - kw) / sw + 1) {}

  Index P, H, W, kh, kw, sh, sw, ph, pw, OH, OW;
};

// A NaN takes the place of a number, and nothing takes the place of a NaN.
HEDGEROW_INLINE bool Wins(float value, float best) { return value > best || (value != value && best == best); }

// What one window holds: rows [k0, k1) of it are inside the image.
struct Winner {
  float best;
  Index place;
};

Winner MaxOfWindow(const Pooling& s, const float* x, Index top, Index k0, Index k1, Index left) {
  const Index l0 = Max(0, -left), l1 = Min(s.kw, s.W - left);
  Winner winner{x[(top + k0) * s.W + left + l0], k0 * s.kw + l0};
  for (Index k = k0; k < k1; ++k) {
    for (Index l = l0; l < l1; ++l) {
      const float value = x[(top + k) * s.W + left + l];
      if (Wins(value, winner.best)) winner = {value, k * s.kw + l};
    }
  }
  return winner;
}

// n <= kWidth elements kStride apart, of which nothing past `left` floats is read.
template <Index kStride>
HEDGEROW_INLINE V LoadApart(const float* p, Index left) {
  const V low = LoadPart(p, Min(kWidth, left));
  if constexpr (kStride == 1) return low;
  VI evens;
  for (int i = 0; i < kWidth; ++i) evens[i] = 2 * i;
  return Shuffle(low, LoadPart(p + kWidth, Max(0, Min(kWidth, left - kWidth))), evens);
}

// n <= kWidth windows at once, kStride apart, that stand inside the image from left to right.
template <Index kStride>
void MaxOfWindows(const Pooling& s, const float* x, Index top, Index k0, Index k1, Index left, Index n,
                                  float* y, uint8_t* index) {
  V best{};
  VI place{};
  for (Index k = k0; k < k1; ++k) {
    for (Index l = 0; l < s.kw; ++l) {
      const V value = LoadApart<kStride>(x + (top + k) * s.W + left + l, s.W - left - l);
      const VI here = static_cast<int32_t>(k * s.kw + l) - VI{};
      const VI wins = k == k0 && l == 0 ? ~VI{} : (value > best) | ((value != value) & (best == best));
      best = wins ? value : best;
      place = wins ? here : place;
    }
  }
  StorePart(y, best, n);
  for (Index i = 0; i < n; ++i) index[i] = static_cast<uint8_t>(place[i]);
}

Status max_pool2d(const Call& call) {
  const Pooling s(call, true);
  const float* x = call.f32(0);
  float* y = call.f32(1);
  uint8_t* index = call.u8(2);
  // Output columns whose windows stand inside the image.
  const Index first = Inside(s.OW, s.sw, -s.pw, s.W).first;
  const Index last = s.sw > 2 ? first : Max(first, Inside(s.OW, s.sw, s.kw - 1 - s.pw, s.W).last);
  for (Index p = 0; p < s.P; ++p, x += s.H * s.W) {
    for (Index oy = 0; oy < s.OH; ++oy, y += s.OW, index += s.OW) {
      const Index top = oy * s.sh - s.ph, k0 = Max(0, -top), k1 = Min(s.kh, s.H - top);
      for (Index ox = 0; ox < s.OW;) {
        const Index left = ox * s.sw - s.pw;
        if (ox >= first && ox < last) {
          const Index n = Min(kWidth, last - ox);
          (s.sw == 1 ? MaxOfWindows<1> : MaxOfWindows<2>)(s, x, top, k0, k1, left, n, y + ox, index + ox);
          ox += n;
        } else {
          const Winner winner = MaxOfWindow(s, x, top, k0, k1, left);
          y[ox] = winner.best;
          index[ox++] = static_cast<uint8_t>(winner.place);
        }
      }
    }
  }
  return kOk;
}

Status max_pool2d_grad(const Call& call) {
  const Pooling s(call, true);
  const float* g = call.f32(0);
  const uint8_t* index = call.u8(1);
  float* dx = call.f32(2);
  Zero(s.P * s.H * s.W, dx);
  for (Index p = 0; p < s.P; ++p, dx += s.H * s.W) {
    for (Index oy = 0; oy < s.OH; ++oy) {
      for (Index ox = 0; ox < s.OW; ++ox, ++g, ++index) {
        const Index place = *index;
        const Index iy = oy * s.sh - s.ph + place / s.kw, ix = ox * s.sw - s.pw + place % s.kw;
        // The index comes from the arena, so it may be anything.
        if (iy >= 0 && iy < s.H && ix >= 0 && ix < s.W) dx[iy * s.W + ix] += *g;
      }
    }
  }
  return kOk;
}

Status avg_pool2d(const Call& call) {
  const Pooling s(call, false);
  const float* x = call.f32(0);
  float* y = call.f32(1);
  const double part = 1.0 / (static_cast<double>(s.kh) * static_cast<double>(s.kw));
  for (Index p = 0; p < s.P; ++p, x += s.H * s.W) {
    for (Index oy = 0; oy < s.OH; ++oy) {
      for (Index ox = 0; ox < s.OW; ++ox) {
        double sum = 0;
        for (Index k = 0; k < s.kh; ++k) {
          const float* row = x + (oy * s.sh + k) * s.W + ox * s.sw;
          float across = 0;
          for (Index l = 0; l < s.kw; ++l) across += row[l];
          sum += across;
        }
        *y++ = static_cast<float>(sum * part);
      }
    }
  }
  return kOk;
}

Status avg_pool2d_grad(const Call& call) {
  const Pooling s(call, false);
  const float* g = call.f32(0);
  float* dx = call.f32(1);
  const float part = static_cast<float>(1.0 / (static_cast<double>(s.kh) * static_cast<double>(s.kw)));
  Zero(s.P * s.H * s.W, dx);
  for (Index p = 0; p < s.P; ++p, dx += s.H * s.W) {
    for (Index oy = 0; oy < s.OH; ++oy) {
      for (Index ox = 0; ox < s.OW; ++ox) {
        const float share = *g++ * part;
        for (Index k = 0; k < s.kh; ++k) {
          float* row = dx + (oy * s.sh + k) * s.W + ox * s.sw;
          for (Index l = 0; l < s.kw; ++l) row[l] += share;
        }
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_POOL_GENERIC_H_
