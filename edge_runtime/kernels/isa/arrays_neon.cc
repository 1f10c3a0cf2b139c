// aarch64 NEON, which every such CPU has: compiled with no flags but the vectoriser's.
#include "isa/array_families.h"

namespace hedgerow {

const ArrayKernels kArraysNeon = HEDGEROW_ARRAY_KERNELS;

}  // namespace hedgerow
