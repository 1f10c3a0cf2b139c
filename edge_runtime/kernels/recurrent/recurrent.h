// What GRU and LSTM share. (B,T,.) tensors are walked a step at a time: row b of step t stands T rows after row b - 1.
#ifndef HEDGEROW_RECURRENT_RECURRENT_H_
#define HEDGEROW_RECURRENT_RECURRENT_H_

#include "gemm/linear.h"
#include "math/generic.h"

namespace hedgerow {
namespace {

struct Steps {
  explicit Steps(const Call& call) : B(call.size(0)), T(call.size(1)), I(call.size(2)), H(call.size(3)) {}
  Index B, T, I, H;
};

// The B rows of `width` floats of one step: row b at p + b * stride.
template <typename Pointer>
struct Rows {
  Pointer p;
  Index stride;
  Pointer operator[](Index b) const { return p + b * stride; }
};

template <typename Pointer>
Rows<Pointer> StepOf(const Steps& s, Pointer sequence, Index width, Index t) {
  return {sequence + t * width, s.T * width};
}

// The state before step t: h0 (B,H) before the first, else the step before in y (B,T,H).
inline Rows<const float*> Before(const Steps& s, const float* h0, const float* y, Index t) {
  return t == 0 ? Rows<const float*>{h0, s.H} : StepOf(s, y, s.H, t - 1);
}

// dw (rows,H) = sum over the steps of dgates^T h, h the state before the step; `dgates` (B,T,4H) may point past its
// first columns.
void AddStateWeights(const Steps& s, Index rows, const float* dgates, const float* h0, const float* y, float* dw) {
  const Index wide = 4 * s.H;
  Gemm(Form::kTN, rows, s.H, s.B, dgates, s.T * wide, h0, s.H, Beta::kZero, dw, s.H);
  for (Index b = 0; b < s.B && s.T > 1; ++b) {
    Gemm(Form::kTN, rows, s.H, s.T - 1, dgates + (b * s.T + 1) * wide, wide, y + b * s.T * s.H, s.H, Beta::kOne, dw,
         s.H);
  }
}

// db[j] = sum over rows of x[i][j]
void SumRowsOf(Index rows, Index columns, const float* x, Index stride, float* db) {
  ForVectors(columns, [&](Index j, Index k) {
    double total[kWidth] = {};
    for (Index i = 0; i < rows;) {
      V block{};
      for (const Index end = Min(rows, i + kSumBlock); i < end; ++i) block += LoadPart(x + i * stride + j, k);
      for (Index lane = 0; lane < kWidth; ++lane) total[lane] += block[lane];
    }
    for (Index lane = 0; lane < k; ++lane) db[j + lane] = static_cast<float>(total[lane]);
  });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_RECURRENT_RECURRENT_H_
