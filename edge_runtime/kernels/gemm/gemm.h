// Matrix products, the core of most other families, and the three ops that are nothing else (ops.h).
//
//   Gemm(form, M, N, K, a, lda, b, ldb, beta, c, ldc)
//     kNN   c[m,n] = beta c[m,n] + sum_k a[m,k] b[k,n]
//     kNT   c[m,n] = beta c[m,n] + sum_k a[m,k] b[n,k]
//     kTN   c[m,n] = beta c[m,n] + sum_k a[k,m] b[k,n]
//
// Row-major, ld* = elements from one row to the next; beta is 0 (c is only written) or 1. M, N >= 1; K >= 0. c overlaps
// neither a nor b. Sums of at most kDepth products run in float32, in an order that M, N, K and the form alone fix.
#ifndef HEDGEROW_GEMM_GEMM_H_
#define HEDGEROW_GEMM_GEMM_H_

namespace hedgerow {

enum class Form { kNN, kNT, kTN };
enum class Beta { kZero, kOne };

}  // namespace hedgerow

#endif  // HEDGEROW_GEMM_GEMM_H_
