// Compiled for AVX2.
#include "isa/array_families.h"

namespace hedgerow {

const ArrayKernels kArraysAvx2 = HEDGEROW_ARRAY_KERNELS;

}  // namespace hedgerow
