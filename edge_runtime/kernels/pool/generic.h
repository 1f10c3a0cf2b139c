// Max and average pooling, and their gradients (ops.h).
#ifndef HEDGEROW_POOL_GENERIC_H_
#define HEDGEROW_POOL_GENERIC_H_

#include "conv/geometry.h"
#include "isa/transpose.h"
#include "pool/two_by_two.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

struct Pooling {
  // Average pooling has no padding: its op has no such ints.
  Pooling(const Call& call, bool padded)
      : P(call.size(0)), H(call.size(1)), W(call.size(2)), kh(call.size(3)), kw(call.size(4)), sh(call.size(5)),
        sw(call.size(6)), ph(padded ? call.size(7) : 0), pw(padded ? call.size(8) : 0), OH((H + 2 * ph - kh) / sh + 1),
        OW((W + 2 * pw - kw) / sw + 1) {}

  bool TilesTwoByTwo() const {
    return kh == 2 && kw == 2 && sh == 2 && sw == 2 && ph == 0 && pw == 0 && H % 2 == 0 && W % 2 == 0;
  }

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

// Planes [begin, end).
void MaxOfPlanes(const Pooling& s, Index begin, Index end, const float* x, float* y, uint8_t* index) {
  x += begin * s.H * s.W;
  y += begin * s.OH * s.OW;
  index += begin * s.OH * s.OW;
  // Output columns whose windows stand inside the image.
  const Index first = Inside(s.OW, s.sw, -s.pw, s.W).first;
  const Index last = s.sw > 2 ? first : Max(first, Inside(s.OW, s.sw, s.kw - 1 - s.pw, s.W).last);
  for (Index p = begin; p < end; ++p, x += s.H * s.W) {
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
}

Status max_pool2d(const Call& call) {
  const Pooling s(call, true);
  const float* x = call.f32(0);
  float* y = call.f32(1);
  uint8_t* index = call.u8(2);
  ForRanges(call, s.P, static_cast<double>(s.OH * s.OW * s.kh * s.kw) * 0.3, 1, [=](Index first, Index last) {
    if (s.TilesTwoByTwo()) return MaxOfPairs(first, last, s.H, s.W, x, y, index);
    MaxOfPlanes(s, first, last, x, y, index);
  });
  return kOk;
}

void SpreadPlanes(const Pooling& s, Index first, Index last, const float* g, const uint8_t* index, float* dx) {
  // Where each place of a window stands.
  const Index places = s.kh * s.kw;
  uint8_t row[256], column[256];
  for (Index i = 0; i < places; ++i) {
    row[i] = static_cast<uint8_t>(i / s.kw);
    column[i] = static_cast<uint8_t>(i % s.kw);
  }
  Zero((last - first) * s.H * s.W, dx + first * s.H * s.W);
  for (Index p = first; p < last; ++p) {
    for (Index oy = 0; oy < s.OH; ++oy) {
      const Index at = (p * s.OH + oy) * s.OW;
      for (Index ox = 0; ox < s.OW; ++ox) {
        // The index comes from the arena, so it may be anything.
        const Index place = index[at + ox];
        if (place >= places) continue;
        const Index iy = oy * s.sh - s.ph + row[place], ix = ox * s.sw - s.pw + column[place];
        if (iy >= 0 && iy < s.H && ix >= 0 && ix < s.W) dx[(p * s.H + iy) * s.W + ix] += g[at + ox];
      }
    }
  }
}

Status max_pool2d_grad(const Call& call) {
  const Pooling s(call, true);
  const float* g = call.f32(0);
  const uint8_t* index = call.u8(1);
  float* dx = call.f32(2);
  ForRanges(call, s.P, static_cast<double>(s.OH * s.OW * 2 + s.H * s.W) * 0.3, 1, [=](Index first, Index last) {
    if (s.TilesTwoByTwo()) return SpreadPairs(first, last, s.H, s.W, g, index, dx);
    SpreadPlanes(s, first, last, g, index, dx);
  });
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
