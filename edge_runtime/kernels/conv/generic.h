// Convolutions (ops.h): pointwise ones are a product of matrices as they stand, depthwise ones run directly, all others
// copy the windows of one image and group into the columns of `work` (Chellapilla et al. 2006) and take products.
#ifndef HEDGEROW_CONV_GENERIC_H_
#define HEDGEROW_CONV_GENERIC_H_

#include "conv/columns.h"
#include "conv/depthwise.h"
#include "elementwise/activation.h"
#include "gemm/generic.h"

namespace hedgerow {
namespace {

Status conv2d(const Call& call) {
  const Geometry s(call);
  const float *x = call.f32(0), *w = call.f32(1), *b = call.f32(2);
  float *y = call.f32(3), *work = call.f32(4);
  if (s.Depthwise()) {
    WithActivation(call.size(12), [&](auto act) { DepthwiseForward(call, s, x, w, b, y, act); });
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
    Activate(call.size(12), s.group_outputs * places, out);
  }
  return kOk;
}

Status conv2d_dx(const Call& call) {
  const Geometry s(call);
  const float *g = call.f32(0), *w = call.f32(1);
  float *dx = call.f32(2), *work = call.f32(3);
  if (s.Depthwise()) {
    DepthwiseDx(call, s, g, w, dx);
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
    DepthwiseDw(call, s, g, x, dw);
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
