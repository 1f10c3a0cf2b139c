// Which ISA's kernels this process uses.
#ifndef HEDGEROW_ISA_DISPATCH_H_
#define HEDGEROW_ISA_DISPATCH_H_

#include "accumulate/accumulate.h"
#include "gemm_s8/gemm_s8.h"
#include "integers/integers.h"
#include "isa/arrays.h"
#include "isa/kernels.h"

namespace hedgerow {

struct IsaRow {
  const char* name;
  bool (*available)();
  const AccumulateKernels* accumulate;
  const ArrayKernels* arrays;
  const GemmS8Kernels* gemm_s8;
  const Kernel* floats;
  const IntegerKernels* integers;

  OpKernels Ops() const { return {floats, integers->ops}; }
};

// The ISAs of this build that this CPU can run, best first; nullptr past the last.
const IsaRow* AvailableIsa(int32_t index);
// nullptr if none of them has that name.
const IsaRow* FindIsa(const char* name);

// The best one at load, or the one that the environment variable HEDGEROW_ISA names.
const IsaRow* SelectedIsa();
void SelectIsa(const IsaRow* isa);
// What HEDGEROW_ISA was, if that is no ISA here; else nullptr.
const char* RefusedIsa();

}  // namespace hedgerow

#endif  // HEDGEROW_ISA_DISPATCH_H_
