// PyTorch's LSTM (ops.h): forward, its gates again from y, and the gradient through time.
#ifndef HEDGEROW_RECURRENT_LSTM_H_
#define HEDGEROW_RECURRENT_LSTM_H_

#include "recurrent/recurrent.h"

namespace hedgerow {
namespace {

// gates (B,T,4H) = i f g o, cells (B,T,H), and y unless it is given already.
void LstmGates(const Call& call, bool given_y, float* y, float* gates, float* cells, float* work) {
  const Steps s(call);
  const Index H = s.H;
  const float *h0 = call.f32(1), *c0 = call.f32(2), *w_hh = call.f32(4), *b_hh = call.f32(6);
  Affine(&call, s.B * s.T, 4 * H, s.I, call.f32(0), s.I, call.f32(3), call.f32(5), gates, 4 * H);
  for (Index t = 0; t < s.T; ++t) {
    const Rows<const float*> h = Before(s, h0, y, t), c = Before(s, c0, cells, t);
    const Rows<float*> out = StepOf(s, y, H, t), cell = StepOf(s, cells, H, t), gate = StepOf(s, gates, 4 * H, t);
    Affine(nullptr, s.B, 4 * H, H, h.p, h.stride, w_hh, b_hh, work, 4 * H);
    for (Index b = 0; b < s.B; ++b) {
      float* i = gate[b];
      const float *sum = work + b * 4 * H, *before = c[b];
      ForVectors(H, [&](Index j, Index k) {
        const V vi = Sigmoid(LoadPart(i + j, k) + LoadPart(sum + j, k));
        const V vf = Sigmoid(LoadPart(i + H + j, k) + LoadPart(sum + H + j, k));
        const V vg = Tanh(LoadPart(i + 2 * H + j, k) + LoadPart(sum + 2 * H + j, k));
        const V vo = Sigmoid(LoadPart(i + 3 * H + j, k) + LoadPart(sum + 3 * H + j, k));
        const V vc = vf * LoadPart(before + j, k) + vi * vg;
        StorePart(cell[b] + j, vc, k);
        if (!given_y) StorePart(out[b] + j, vo * Tanh(vc), k);
        StorePart(i + j, vi, k);
        StorePart(i + H + j, vf, k);
        StorePart(i + 2 * H + j, vg, k);
        StorePart(i + 3 * H + j, vo, k);
      });
    }
  }
}

Status lstm(const Call& call) {
  const Steps s(call);
  float *y = call.f32(7), *hn = call.f32(8), *cn = call.f32(9), *cells = call.f32(11);
  LstmGates(call, false, y, call.f32(10), cells, call.f32(12));
  for (Index b = 0; b < s.B; ++b) {
    CopyFloats(s.H, y + ((b + 1) * s.T - 1) * s.H, hn + b * s.H);
    CopyFloats(s.H, cells + ((b + 1) * s.T - 1) * s.H, cn + b * s.H);
  }
  return kOk;
}

Status lstm_gates(const Call& call) {
  LstmGates(call, true, call.f32(7), call.f32(8), call.f32(9), call.f32(10));
  return kOk;
}

Status lstm_grad(const Call& call) {
  const Steps s(call);
  const Index H = s.H, wide = 4 * H;
  const float *gy = call.f32(0), *ghn = call.f32(1), *gcn = call.f32(2), *x = call.f32(3), *h0 = call.f32(4),
              *c0 = call.f32(5), *w_ih = call.f32(6), *w_hh = call.f32(7), *y = call.f32(8), *gates = call.f32(9),
              *cells = call.f32(10);
  float *dx = call.f32(11), *dh0 = call.f32(12), *dc0 = call.f32(13), *dw_ih = call.f32(14), *dw_hh = call.f32(15),
        *db_ih = call.f32(16), *db_hh = call.f32(17), *dgates = call.f32(18), *dh = call.f32(19), *dc = dh + s.B * H;
  CopyFloats(s.B * H, ghn, dh);
  CopyFloats(s.B * H, gcn, dc);
  for (Index t = s.T - 1; t >= 0; --t) {
    const Rows<const float*> c = Before(s, c0, cells, t), cell = StepOf(s, cells, H, t), from_y = StepOf(s, gy, H, t),
                             gate = StepOf(s, gates, wide, t);
    const Rows<float*> dgate = StepOf(s, dgates, wide, t);
    for (Index b = 0; b < s.B; ++b) {
      const float *i = gate[b], *before = c[b], *more = from_y[b], *now = cell[b];
      float *d = dgate[b], *carry = dh + b * H, *carry_c = dc + b * H;
      ForVectors(H, [&](Index j, Index k) {
        const V vi = LoadPart(i + j, k), vf = LoadPart(i + H + j, k), vg = LoadPart(i + 2 * H + j, k);
        const V vo = LoadPart(i + 3 * H + j, k), tanh_c = Tanh(LoadPart(now + j, k));
        const V g = LoadPart(carry + j, k) + LoadPart(more + j, k);
        const V gc = LoadPart(carry_c + j, k) + g * vo * (1.f - tanh_c * tanh_c);
        StorePart(d + j, gc * vg * (vi * (1.f - vi)), k);
        StorePart(d + H + j, gc * LoadPart(before + j, k) * (vf * (1.f - vf)), k);
        StorePart(d + 2 * H + j, gc * vi * (1.f - vg * vg), k);
        StorePart(d + 3 * H + j, g * tanh_c * (vo * (1.f - vo)), k);
        StorePart(carry_c + j, gc * vf, k);
      });
    }
    Gemm(Form::kNN, s.B, H, wide, dgate.p, dgate.stride, w_hh, H, Beta::kZero, dh, H);
  }
  CopyFloats(s.B * H, dh, dh0);
  CopyFloats(s.B * H, dc, dc0);
  Gemm(&call, Form::kNN, s.B * s.T, s.I, wide, dgates, wide, w_ih, s.I, Beta::kZero, dx, s.I, {});
  Gemm(&call, Form::kTN, wide, s.I, s.B * s.T, dgates, wide, x, s.I, Beta::kZero, dw_ih, s.I, {});
  AddStateWeights(s, wide, dgates, h0, y, dw_hh);
  SumRowsOf(s.B * s.T, wide, dgates, wide, db_ih);
  CopyFloats(wide, db_ih, db_hh);
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_RECURRENT_LSTM_H_
