// PyTorch's GRU (ops.h): forward, its gates again from y, and the gradient through time.
#ifndef HEDGEROW_RECURRENT_GRU_H_
#define HEDGEROW_RECURRENT_GRU_H_

#include "recurrent/recurrent.h"

namespace hedgerow {
namespace {

// gates (B,T,4H) = r z n m, and y unless it is given already.
void GruGates(const Call& call, bool given_y, float* y, float* gates, float* work) {
  const Steps s(call);
  const Index H = s.H;
  const float *x = call.f32(0), *h0 = call.f32(1), *w_hh = call.f32(3), *b_hh = call.f32(5);
  Affine(&call, s.B * s.T, 3 * H, s.I, x, s.I, call.f32(2), call.f32(4), gates, 4 * H);
  for (Index t = 0; t < s.T; ++t) {
    const Rows<const float*> h = Before(s, h0, y, t);
    const Rows<float*> out = StepOf(s, y, H, t), gate = StepOf(s, gates, 4 * H, t);
    Affine(nullptr, s.B, 3 * H, H, h.p, h.stride, w_hh, b_hh, work, 3 * H);
    for (Index b = 0; b < s.B; ++b) {
      float *r = gate[b], *z = r + H, *n = z + H, *m = n + H;
      const float *sum = work + b * 3 * H, *before = h[b];
      ForVectors(H, [&](Index j, Index k) {
        const V vr = Sigmoid(LoadPart(r + j, k) + LoadPart(sum + j, k));
        const V vz = Sigmoid(LoadPart(z + j, k) + LoadPart(sum + H + j, k));
        const V vm = LoadPart(sum + 2 * H + j, k);
        const V vn = Tanh(LoadPart(n + j, k) + vr * vm);
        if (!given_y) StorePart(out[b] + j, (1.f - vz) * vn + vz * LoadPart(before + j, k), k);
        StorePart(r + j, vr, k);
        StorePart(z + j, vz, k);
        StorePart(n + j, vn, k);
        StorePart(m + j, vm, k);
      });
    }
  }
}

Status gru(const Call& call) {
  const Steps s(call);
  float *y = call.f32(6), *hn = call.f32(7);
  GruGates(call, false, y, call.f32(8), call.f32(9));
  for (Index b = 0; b < s.B; ++b) CopyFloats(s.H, y + ((b + 1) * s.T - 1) * s.H, hn + b * s.H);
  return kOk;
}

Status gru_gates(const Call& call) {
  GruGates(call, true, call.f32(6), call.f32(7), call.f32(8));
  return kOk;
}

Status gru_grad(const Call& call) {
  const Steps s(call);
  const Index H = s.H, wide = 4 * H;
  const float *gy = call.f32(0), *ghn = call.f32(1), *x = call.f32(2), *h0 = call.f32(3), *w_ih = call.f32(4),
              *w_hh = call.f32(5), *y = call.f32(6), *gates = call.f32(7);
  float *dx = call.f32(8), *dh0 = call.f32(9), *dw_ih = call.f32(10), *dw_hh = call.f32(11), *db_ih = call.f32(12),
        *db_hh = call.f32(13), *dgates = call.f32(14), *dh = call.f32(15);
  CopyFloats(s.B * H, ghn, dh);
  for (Index t = s.T - 1; t >= 0; --t) {
    const Rows<const float*> h = Before(s, h0, y, t), gate = StepOf(s, gates, wide, t), from_y = StepOf(s, gy, H, t);
    const Rows<float*> dgate = StepOf(s, dgates, wide, t);
    for (Index b = 0; b < s.B; ++b) {
      const float *r = gate[b], *before = h[b], *more = from_y[b];
      float *d = dgate[b], *carry = dh + b * H;
      ForVectors(H, [&](Index j, Index k) {
        const V vr = LoadPart(r + j, k), vz = LoadPart(r + H + j, k), vn = LoadPart(r + 2 * H + j, k);
        const V vm = LoadPart(r + 3 * H + j, k);
        const V g = LoadPart(carry + j, k) + LoadPart(more + j, k);
        const V dn = g * (1.f - vz) * (1.f - vn * vn);
        StorePart(d + j, dn * vm * (vr * (1.f - vr)), k);
        StorePart(d + H + j, g * (LoadPart(before + j, k) - vn) * (vz * (1.f - vz)), k);
        StorePart(d + 2 * H + j, dn, k);
        StorePart(d + 3 * H + j, dn * vr, k);
        StorePart(carry + j, g * vz, k);
      });
    }
    // h reaches the sums of r and z through the first 2H rows of w_hh, and m through the rest.
    Gemm(Form::kNN, s.B, H, 2 * H, dgate.p, dgate.stride, w_hh, H, Beta::kOne, dh, H);
    Gemm(Form::kNN, s.B, H, H, dgate.p + 3 * H, dgate.stride, w_hh + 2 * H * H, H, Beta::kOne, dh, H);
  }
  CopyFloats(s.B * H, dh, dh0);
  Gemm(&call, Form::kNN, s.B * s.T, s.I, 3 * H, dgates, wide, w_ih, s.I, Beta::kZero, dx, s.I, {});
  Gemm(&call, Form::kTN, 3 * H, s.I, s.B * s.T, dgates, wide, x, s.I, Beta::kZero, dw_ih, s.I, {});
  AddStateWeights(s, 2 * H, dgates, h0, y, dw_hh);
  AddStateWeights(s, H, dgates + 3 * H, h0, y, dw_hh + 2 * H * H);
  SumRowsOf(s.B * s.T, 3 * H, dgates, wide, db_ih);
  CopyFloats(2 * H, db_ih, db_hh);
  SumRowsOf(s.B * s.T, H, dgates + 3 * H, wide, db_hh + 2 * H);
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_RECURRENT_GRU_H_
