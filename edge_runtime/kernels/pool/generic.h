// Max and average pooling, and their gradients (ops.h).
#ifndef HEDGEROW_POOL_GENERIC_H_
#define HEDGEROW_POOL_GENERIC_H_

#include "conv/geometry.h"

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

Status max_pool2d(const Call& call) {
  const Pooling s(call, true);
  const float* x = call.f32(0);
  float* y = call.f32(1);
  uint8_t* index = call.u8(2);
  for (Index p = 0; p < s.P; ++p, x += s.H * s.W) {
    for (Index oy = 0; oy < s.OH; ++oy) {
      const Index top = oy * s.sh - s.ph;
      const Index k0 = Max(0, -top), k1 = Min(s.kh, s.H - top);
      for (Index ox = 0; ox < s.OW; ++ox) {
        const Index left = ox * s.sw - s.pw;
        const Index l0 = Max(0, -left), l1 = Min(s.kw, s.W - left);
        float best = x[(top + k0) * s.W + left + l0];
        Index place = k0 * s.kw + l0;
        for (Index k = k0; k < k1; ++k) {
          for (Index l = l0; l < l1; ++l) {
            const float value = x[(top + k) * s.W + left + l];
            // A NaN takes the place of a number, and nothing takes the place of a NaN.
            const bool wins = value > best || (value != value && best == best);
            best = wins ? value : best;
            place = wins ? k * s.kw + l : place;
          }
        }
        *y++ = best;
        *index++ = static_cast<uint8_t>(place);
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
