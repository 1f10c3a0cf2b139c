// Every integer op at once, in the order of the codes. Included last by each ISA's file.
#ifndef HEDGEROW_INTEGERS_FAMILIES_H_
#define HEDGEROW_INTEGERS_FAMILIES_H_

#include "integers/conv.h"
#include "integers/depthwise.h"
#include "integers/integers.h"
#include "integers/pointwise.h"
#include "integers/pool.h"
#include "program/op_list.h"

namespace hedgerow {
namespace {

#define HEDGEROW_KERNEL(name, ...) name,
constexpr Kernel kIntegerOps[] = {HEDGEROW_INTEGER_OPS(HEDGEROW_KERNEL)};
#undef HEDGEROW_KERNEL
constexpr IntegerKernels kIntegers = {kIntegerOps, PackConv, PackDepthwise};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_FAMILIES_H_
