// Convolutions (ops.h): pointwise ones are a product of matrices as they stand, depthwise ones run directly, all others
// copy the windows of one image and group into the columns of `work` (Chellapilla et al. 2006) and take products.
#ifndef HEDGEROW_CONV_GENERIC_H_
#define HEDGEROW_CONV_GENERIC_H_

#include "conv/depthwise.h"
#include "conv/geometry.h"
#include "gemm/generic.h"

namespace hedgerow {
namespace {

// columns[(c kh + k) kw + l][oy OW + ox] = x[c][oy sh + k - ph][ox sw + l - pw], 0 outside the image.
void WindowsToColumns(const Geometry& s, const float* x, float* columns) {
  for (Index c = 0; c < s.group_channels; ++c, x += s.H * s.W) {
    for (Index k = 0; k < s.kh; ++k) {
      for (Index l = 0; l < s.kw; ++l) {
        const Span inside = s.Columns(l);
        for (Index oy = 0; oy < s.OH; ++oy, columns += s.OW) {
          const Index iy = oy * s.sh + k - s.ph;
          if (iy < 0 || iy >= s.H) {
            Zero(s.OW, columns);
            continue;
          }
          Zero(inside.first, columns);
          const float* row = x + iy * s.W + l - s.pw;
          if (s.sw == 1) {
            CopyFloats(inside.last - inside.first, row + inside.first, columns + inside.first);
          } else {
            for (Index ox = inside.first; ox < inside.last; ++ox) columns[ox] = row[ox * s.sw];
          }
          Zero(s.OW - inside.last, columns + inside.last);
        }
      }
    }
  }
}

// The transpose: each column element is added to the place of x that it was read from.
void AddColumnsToWindows(const Geometry& s, const float* columns, float* x) {
  for (Index c = 0; c < s.group_channels; ++c, x += s.H * s.W) {
    for (Index k = 0; k < s.kh; ++k) {
      for (Index l = 0; l < s.kw; ++l) {
        const Span inside = s.Columns(l);
        for (Index oy = 0; oy < s.OH; ++oy, columns += s.OW) {
          const Index iy = oy * s.sh + k - s.ph;
          if (iy < 0 || iy >= s.H) continue;
          float* row = x + iy * s.W + l - s.pw;
          if (s.sw == 1) {
            const Index first = inside.first;
            Map(inside.last - first, row + first, columns + first, row + first, [](V a, V b) { return a + b; });
          } else {
            for (Index ox = inside.first; ox < inside.last; ++ox) row[ox * s.sw] += columns[ox];
          }
        }
      }
    }
  }
}

Status conv2d(const Call& call) {
  const Geometry s(call);
  const float *x = call.f32(0), *w = call.f32(1), *b = call.f32(2);
  float *y = call.f32(3), *work = call.f32(4);
  if (s.Depthwise()) {
    DepthwiseForward(s, x, w, b, y);
    return kOk;
  }
  const Index places = s.OH * s.OW, depth = s.group_channels * s.kh * s.kw;
  for (Index i = 0; i < s.N * s.groups; ++i) {
    const Index g = i % s.groups;
    const float* image = x + i * s.group_channels * s.H * s.W;
    float* out = y + i * s.group_outputs * places;
    if (b) {
      for (Index o = 0; o < s.group_outputs; ++o) Splat(places, b[g * s.group_outputs + o], out + o * places);
    }
    if (!s.Pointwise()) WindowsToColumns(s, image, work);
    Gemm(Form::kNN, s.group_outputs, places, depth, w + g * s.group_outputs * depth, depth,
         s.Pointwise() ? image : work, places, b ? Beta::kOne : Beta::kZero, out, places);
  }
  return kOk;
}

Status conv2d_dx(const Call& call) {
  const Geometry s(call);
  const float *g = call.f32(0), *w = call.f32(1);
  float *dx = call.f32(2), *work = call.f32(3);
  if (s.Depthwise()) {
    DepthwiseDx(s, g, w, dx);
    return kOk;
  }
  const Index places = s.OH * s.OW, depth = s.group_channels * s.kh * s.kw;
  for (Index i = 0; i < s.N * s.groups; ++i) {
    float* image = dx + i * s.group_channels * s.H * s.W;
    Gemm(Form::kTN, depth, places, s.group_outputs, w + (i % s.groups) * s.group_outputs * depth, depth,
         g + i * s.group_outputs * places, places, Beta::kZero, s.Pointwise() ? image : work, places);
    if (s.Pointwise()) continue;
    Zero(s.group_channels * s.H * s.W, image);
    AddColumnsToWindows(s, work, image);
  }
  return kOk;
}

Status conv2d_dw(const Call& call) {
  const Geometry s(call);
  const float *g = call.f32(0), *x = call.f32(1);
  float *dw = call.f32(2), *work = call.f32(3);
  if (s.Depthwise()) {
    DepthwiseDw(s, g, x, dw);
    return kOk;
  }
  const Index places = s.OH * s.OW, depth = s.group_channels * s.kh * s.kw;
  for (Index i = 0; i < s.N * s.groups; ++i) {
    const float* image = x + i * s.group_channels * s.H * s.W;
    if (!s.Pointwise()) WindowsToColumns(s, image, work);
    Gemm(Form::kNT, s.group_outputs, depth, places, g + i * s.group_outputs * places, places,
         s.Pointwise() ? image : work, places, i < s.groups ? Beta::kZero : Beta::kOne,
         dw + (i % s.groups) * s.group_outputs * depth, depth);
  }
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_GENERIC_H_
