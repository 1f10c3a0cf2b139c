// Every family at once, and one ISA's kernels in the order of the codes. Included last by each ISA's file.
#ifndef HEDGEROW_ISA_FAMILIES_H_
#define HEDGEROW_ISA_FAMILIES_H_

#include "attention/generic.h"
#include "conv/generic.h"
#include "elementwise/generic.h"
#include "fake_quant/generic.h"
#include "gemm/linear.h"
#include "isa/kernels.h"
#include "lookup/generic.h"
#include "loss/generic.h"
#include "norm/generic.h"
#include "pool/generic.h"
#include "program/op_list.h"
#include "random/generic.h"
#include "recurrent/gru.h"
#include "recurrent/lstm.h"
#include "update/generic.h"

// A kernel has its op's name, so that this list is the only one.
#define HEDGEROW_KERNEL(name, ...) name,
#define HEDGEROW_KERNELS {HEDGEROW_FLOAT_OPS(HEDGEROW_KERNEL)}

#endif  // HEDGEROW_ISA_FAMILIES_H_
