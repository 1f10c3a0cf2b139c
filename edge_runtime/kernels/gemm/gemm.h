// Matrix products, the core of most other families, and the three ops that are nothing else (ops.h).
//
//   Gemm(form, M, N, K, a, lda, b, ldb, beta, c, ldc, end)
//     kNN   c[m,n] = act(beta c[m,n] + bias[n] + sum_k a[m,k] b[k,n])
//     kNT   c[m,n] = act(beta c[m,n] + bias[n] + sum_k a[m,k] b[n,k])
//     kTN   c[m,n] = act(beta c[m,n] + bias[n] + sum_k a[k,m] b[k,n])
//
// Row-major, ld* = elements from one row to the next; beta is 0 (c is only written) or 1, and a bias goes with beta 0
// only. M, N >= 1; K >= 0. c overlaps neither a nor b. Sums of at most kDepth products (gemm/tile.h; a lane of a dot
// product: 256) run in float32, in an order that M, N, K and the form alone fix: how many threads share the product
// changes no bit. act: elementwise/activation.h.
#ifndef HEDGEROW_GEMM_GEMM_H_
#define HEDGEROW_GEMM_GEMM_H_

#include <cstddef>

namespace hedgerow {

enum class Form { kNN, kNT, kTN };
enum class Beta { kZero, kOne };

struct GemmEnd {
  const float* bias = nullptr;
  ptrdiff_t act = 0;
};

}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_GEMM_H_
