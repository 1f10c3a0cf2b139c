// The families of plain loops over arrays, as each ISA has them.
#ifndef HEDGEROW_ISA_ARRAYS_H_
#define HEDGEROW_ISA_ARRAYS_H_

#include "low_rank/low_rank.h"
#include "mask_add/mask_add.h"
#include "pack_bits/pack_bits.h"
#include "quantize/quantize.h"
#include "topk/topk.h"

namespace hedgerow {

struct ArrayKernels {
  QuantizeKernels quantize;
  PackBitsKernels pack_bits;
  MaskAddKernels mask_add;
  TopkKernels topk;
  LowRankKernels low_rank;
};

extern const ArrayKernels kArraysScalar;
extern const ArrayKernels kArraysAvx2;  // x86-64 builds only
extern const ArrayKernels kArraysNeon;  // aarch64 builds only

}  // namespace hedgerow

#endif  // HEDGEROW_ISA_ARRAYS_H_
