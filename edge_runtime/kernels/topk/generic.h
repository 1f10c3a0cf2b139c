// A float's bits without the sign are an integer in the order of its magnitude, so all of this is on integers.
#ifndef HEDGEROW_TOPK_GENERIC_H_
#define HEDGEROW_TOPK_GENERIC_H_

#include <cstring>

#include "topk/topk.h"

namespace hedgerow {
namespace {

constexpr int32_t kInfinityKey = 0x7f800000;  // above it are the NaNs

inline int32_t Key(const float* x) {
  int32_t bits;
  std::memcpy(&bits, x, sizeof bits);
  return bits & 0x7fffffff;
}

// How many keys are in [least, infinity]. In blocks, so that the inner count fits the lanes of the keys.
size_t CountKeys(size_t n, const float* x, int32_t least) {
  constexpr size_t kBlock = size_t{1} << 16;
  size_t total = 0;
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t length = n - begin < kBlock ? n - begin : kBlock;
    int32_t count = 0;
    for (size_t i = 0; i < length; ++i) {
      const int32_t key = Key(x + begin + i);
      count += (key >= least) & (key <= kInfinityKey);
    }
    total += static_cast<size_t>(count);
  }
  return total;
}

size_t CountAtLeast(size_t n, const float* x, float threshold) { return CountKeys(n, x, Key(&threshold)); }

// Radix select: the top 11 of 31 bits of the key that is looked for, then 10 more, then the last 10.
int32_t KthMagnitude(size_t n, const float* x, size_t k, float* threshold) {
  constexpr struct { int shift, width; } kDigits[] = {{20, 11}, {10, 10}, {0, 10}};
  if (CountKeys(n, x, 0) < n) return -1;
  int32_t found = 0;
  for (const auto& digit : kDigits) {
    size_t histogram[1 << 11] = {};
    const int32_t mask = (1 << digit.width) - 1;
    for (size_t i = 0; i < n; ++i) {
      const int32_t key = Key(x + i) >> digit.shift;
      if (key >> digit.width == found) ++histogram[key & mask];
    }
    int32_t bucket = mask;
    for (; histogram[bucket] < k; --bucket) k -= histogram[bucket];
    found = found << digit.width | bucket;
  }
  std::memcpy(threshold, &found, sizeof found);
  return 0;
}

size_t TakeAtLeast(size_t n, const float* x, float threshold, size_t k, uint32_t* indices, float* values) {
  constexpr size_t kBlock = 64;
  const int32_t least = Key(&threshold);
  const size_t larger = CountKeys(n, x, least + 1);
  size_t ties = k > larger ? k - larger : 0, taken = 0;
  for (size_t begin = 0; begin < n && taken < k; begin += kBlock) {
    const size_t end = n - begin < kBlock ? n : begin + kBlock;
    if (CountKeys(end - begin, x + begin, least) == 0) continue;
    for (size_t i = begin; i < end && taken < k; ++i) {
      // Written first, kept or overwritten then: no branch to guess.
      indices[taken] = static_cast<uint32_t>(i);
      values[taken] = x[i];
      const int32_t key = Key(x + i);
      const bool tie = key == least && ties > 0;
      ties -= tie;
      taken += tie | ((key > least) & (key <= kInfinityKey));
    }
  }
  return taken;
}

constexpr TopkKernels kTopk = {CountAtLeast, KthMagnitude, TakeAtLeast};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_TOPK_GENERIC_H_
