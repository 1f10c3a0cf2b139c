// linear and its gradients (ops.h), and the affine map that the recurrent ops share with it.
#ifndef HEDGEROW_GEMM_LINEAR_H_
#define HEDGEROW_GEMM_LINEAR_H_

#include "elementwise/activation.h"
#include "gemm/generic.h"

namespace hedgerow {
namespace {

// c = a w^T + b; without b that is the product alone.
void Affine(Index M, Index N, Index K, const float* a, Index lda, const float* w, const float* b, float* c, Index ldc) {
  for (Index m = 0; b && m < M; ++m) CopyFloats(N, b, c + m * ldc);
  Gemm(Form::kNT, M, N, K, a, lda, w, K, b ? Beta::kOne : Beta::kZero, c, ldc);
}

Status linear(const Call& call) {
  const Index M = call.size(0), N = call.size(1), K = call.size(2);
  Affine(M, N, K, call.f32(0), K, call.f32(1), call.f32(2), call.f32(3), N);
  Activate(call.size(3), M * N, call.f32(3));
  return kOk;
}

Status linear_dx(const Call& call) {
  const Index M = call.size(0), N = call.size(1), K = call.size(2);
  Gemm(Form::kNN, M, K, N, call.f32(0), N, call.f32(1), K, Beta::kZero, call.f32(2), K);
  return kOk;
}

Status linear_dw(const Call& call) {
  const Index M = call.size(0), N = call.size(1), K = call.size(2);
  Gemm(Form::kTN, N, K, M, call.f32(0), N, call.f32(1), K, Beta::kZero, call.f32(2), K);
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_LINEAR_H_
