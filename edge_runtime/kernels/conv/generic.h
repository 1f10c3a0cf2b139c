// Convolutions (ops.h). Depthwise ones run plane by plane; all others are products of matrices of which one, the
// windows, is never written down: tiles read it from a Field, pointwise ones from the image itself.
#ifndef HEDGEROW_CONV_GENERIC_H_
#define HEDGEROW_CONV_GENERIC_H_

#include "conv/anywhere.h"
#include "conv/depthwise.h"
#include "conv/forward.h"
#include "conv/input_gradient.h"
#include "conv/weight_gradient.h"
#include "elementwise/activation.h"

namespace hedgerow {
namespace {

Status conv2d(const Call& call) {
  const Geometry s(call);
  const float *x = call.f32(0), *w = call.f32(1), *b = call.f32(2);
  float* y = call.f32(3);
  if (!s.Depthwise()) {
    ConvForward(call, s, x, w, b, call.size(12), y);
    return kOk;
  }
  WithActivation(call.size(12), [&](auto act) { DepthwiseForward(call, s, x, w, b, y, act); });
  return kOk;
}

Status conv2d_dx(const Call& call) {
  const Geometry s(call);
  const float *g = call.f32(0), *w = call.f32(1);
  float* dx = call.f32(2);
  s.Depthwise() ? DepthwiseDx(call, s, g, w, dx) : ConvDx(call, s, g, w, dx);
  return kOk;
}

Status conv2d_dw(const Call& call) {
  const Geometry s(call);
  const float *g = call.f32(0), *x = call.f32(1);
  float* dw = call.f32(2);
  s.Depthwise() ? DepthwiseDw(call, s, g, x, dw) : ConvDw(call, s, g, x, dw);
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_GENERIC_H_
