// Every family of isa/arrays.h at once. The same source is compiled once for each ISA, with its flags.
#ifndef HEDGEROW_ISA_ARRAY_FAMILIES_H_
#define HEDGEROW_ISA_ARRAY_FAMILIES_H_

#include "isa/arrays.h"
#include "low_rank/generic.h"
#include "mask_add/generic.h"
#include "pack_bits/generic.h"
#include "quantize/generic.h"
#include "topk/generic.h"

#define HEDGEROW_ARRAY_KERNELS {kQuantize, kPackBits, kMaskAdd, kTopk, kLowRank}

#endif  // HEDGEROW_ISA_ARRAY_FAMILIES_H_
