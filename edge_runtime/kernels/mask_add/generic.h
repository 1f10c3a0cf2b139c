// Two loops, once, for every pair of widths; the compiler turns them into the vectors of the ISA that it is told to use.
#ifndef HEDGEROW_MASK_ADD_GENERIC_H_
#define HEDGEROW_MASK_ADD_GENERIC_H_

#include "mask_add/mask_add.h"

namespace hedgerow {
namespace {

template <typename Word, typename Sum>
void Add(size_t n, const Word* __restrict mask, Sum* __restrict acc) {
  for (size_t i = 0; i < n; ++i) acc[i] += mask[i];
}

template <typename Word, typename Sum>
void Subtract(size_t n, const Word* __restrict mask, Sum* __restrict acc) {
  for (size_t i = 0; i < n; ++i) acc[i] -= mask[i];
}

constexpr MaskAddKernels kMaskAdd = {Add<uint64_t, uint64_t>,      Subtract<uint64_t, uint64_t>,
                                     Add<uint32_t, uint32_t>,      Subtract<uint32_t, uint32_t>,
                                     Add<uint32_t, uint64_t>,      Subtract<uint32_t, uint64_t>};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_MASK_ADD_GENERIC_H_
