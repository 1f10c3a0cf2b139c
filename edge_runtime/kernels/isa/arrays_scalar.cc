// One element after another (the build turns the vectoriser off here): what the other ISAs are tested against.
#include "isa/array_families.h"

namespace hedgerow {

const ArrayKernels kArraysScalar = HEDGEROW_ARRAY_KERNELS;

}  // namespace hedgerow
