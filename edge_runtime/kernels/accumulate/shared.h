// The accumulate family on the threads of a team; the same bits on a team of any size, or nullptr.
#ifndef HEDGEROW_ACCUMULATE_SHARED_H_
#define HEDGEROW_ACCUMULATE_SHARED_H_

#include "accumulate/accumulate.h"
#include "threads/team.h"

namespace hedgerow {

int32_t AllFiniteShared(const AccumulateKernels& kernels, Team* team, size_t n, const float* x);

void AccumulateShared(const AccumulateKernels& kernels, Team* team, size_t n, const float* x, double weight,
                      double* acc);

}  // namespace hedgerow

#endif  // HEDGEROW_ACCUMULATE_SHARED_H_
