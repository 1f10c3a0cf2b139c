// linear and its gradients (ops.h), and the affine map that the recurrent ops share with it.
#ifndef HEDGEROW_GEMM_LINEAR_H_
#define HEDGEROW_GEMM_LINEAR_H_

#include "gemm/generic.h"

namespace hedgerow {
namespace {

// c = a w^T + b; without b that is the product alone. Shared by `call`'s team where that is not nullptr.
void Affine(const Call* call, Index M, Index N, Index K, const float* a, Index lda, const float* w, const float* b,
            float* c, Index ldc) {
  Gemm(call, Form::kNT, M, N, K, a, lda, w, K, Beta::kZero, c, ldc, {b, 0});
}

Status linear(const Call& call) {
  const Index M = call.size(0), N = call.size(1), K = call.size(2);
  Gemm(&call, Form::kNT, M, N, K, call.f32(0), K, call.f32(1), K, Beta::kZero, call.f32(3), N,
       {call.f32(2), call.size(3)});
  return kOk;
}

Status linear_dx(const Call& call) {
  const Index M = call.size(0), N = call.size(1), K = call.size(2);
  Gemm(&call, Form::kNN, M, K, N, call.f32(0), N, call.f32(1), K, Beta::kZero, call.f32(2), K, {});
  return kOk;
}

Status linear_dw(const Call& call) {
  const Index M = call.size(0), N = call.size(1), K = call.size(2);
  Gemm(&call, Form::kTN, N, K, M, call.f32(0), N, call.f32(1), K, Beta::kZero, call.f32(2), K, {});
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_LINEAR_H_
