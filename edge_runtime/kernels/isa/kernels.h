// The kernels of each ISA: one for each of the float ops of op_list.h, in the order of their codes.
#ifndef HEDGEROW_ISA_KERNELS_H_
#define HEDGEROW_ISA_KERNELS_H_

#include "program/call.h"

namespace hedgerow {

extern const Kernel kKernelsScalar[];
extern const Kernel kKernelsAvx2[];  // x86-64 builds only; needs FMA too
extern const Kernel kKernelsNeon[];  // aarch64 builds only

}  // namespace hedgerow

#endif  // HEDGEROW_ISA_KERNELS_H_
