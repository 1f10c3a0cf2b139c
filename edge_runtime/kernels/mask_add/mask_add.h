// Sums of masked updates: whole words, added and subtracted mod 2^64 or 2^32. acc and mask must not overlap.
#ifndef HEDGEROW_MASK_ADD_H_
#define HEDGEROW_MASK_ADD_H_

#include <cstddef>
#include <cstdint>

namespace hedgerow {

struct MaskAddKernels {
  // acc[i] += mask[i], or -=
  void (*add_u64)(size_t n, const uint64_t* mask, uint64_t* acc);
  void (*subtract_u64)(size_t n, const uint64_t* mask, uint64_t* acc);
  void (*add_u32)(size_t n, const uint32_t* mask, uint32_t* acc);
  void (*subtract_u32)(size_t n, const uint32_t* mask, uint32_t* acc);
  // Each word of the mask widened with zeros first.
  void (*add_u32_to_u64)(size_t n, const uint32_t* mask, uint64_t* acc);
  void (*subtract_u32_from_u64)(size_t n, const uint32_t* mask, uint64_t* acc);
};

}  // namespace hedgerow

#endif  // HEDGEROW_MASK_ADD_H_
