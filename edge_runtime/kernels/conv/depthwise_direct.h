// Depthwise convolutions of any shape: for each kernel place, the runs of outputs that it joins.
#ifndef HEDGEROW_CONV_DEPTHWISE_DIRECT_H_
#define HEDGEROW_CONV_DEPTHWISE_DIRECT_H_

#include "conv/geometry.h"

namespace hedgerow {
namespace {

// f(kernel place, first output, first input, count) for every run in one plane.
template <typename F>
HEDGEROW_INLINE void ForRuns(const Geometry& s, F f) {
  for (Index k = 0; k < s.kh; ++k) {
    for (Index l = 0; l < s.kw; ++l) {
      const Span columns = s.Columns(l);
      for (Index oy = 0; oy < s.OH; ++oy) {
        const Index iy = oy * s.sh + k - s.ph;
        if (iy < 0 || iy >= s.H || columns.first >= columns.last) continue;
        f(k * s.kw + l, oy * s.OW + columns.first, iy * s.W + columns.first * s.sw + l - s.pw,
          columns.last - columns.first);
      }
    }
  }
}

void DirectForward(const Geometry& s, const float* x, const float* w, const float* b, float* y) {
  for (Index i = 0; i < s.N * s.C; ++i, x += s.H * s.W, y += s.OH * s.OW) {
    const float* kernel = w + i % s.C * s.kh * s.kw;
    Splat(s.OH * s.OW, b ? b[i % s.C] : 0, y);
    ForRuns(s, [&](Index place, Index out, Index in, Index count) {
      for (Index j = 0; j < count; ++j) y[out + j] += kernel[place] * x[in + j * s.sw];
    });
  }
}

void DirectDx(const Geometry& s, const float* g, const float* w, float* dx) {
  for (Index i = 0; i < s.N * s.C; ++i, dx += s.H * s.W, g += s.OH * s.OW) {
    const float* kernel = w + i % s.C * s.kh * s.kw;
    Zero(s.H * s.W, dx);
    ForRuns(s, [&](Index place, Index out, Index in, Index count) {
      for (Index j = 0; j < count; ++j) dx[in + j * s.sw] += kernel[place] * g[out + j];
    });
  }
}

void DirectDw(const Geometry& s, const float* g, const float* x, float* dw) {
  Zero(s.C * s.kh * s.kw, dw);
  for (Index i = 0; i < s.N * s.C; ++i, x += s.H * s.W, g += s.OH * s.OW) {
    float* kernel = dw + i % s.C * s.kh * s.kw;
    ForRuns(s, [&](Index place, Index out, Index in, Index count) {
      double sum = 0;
      for (Index j = 0; j < count; ++j) sum += g[out + j] * x[in + j * s.sw];
      kernel[place] += static_cast<float>(sum);
    });
  }
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_DEPTHWISE_DIRECT_H_
