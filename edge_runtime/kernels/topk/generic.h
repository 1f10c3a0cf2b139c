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

// f(i) for each i in [0, n) whose key is in [least, greatest], in order. A block's keys are compared together, into one
// bit each: most blocks hold none or few.
template <typename F>
inline void ForKeys(size_t n, const float* x, int32_t least, int32_t greatest, F f) {
  constexpr size_t kBlock = 16;
  for (size_t begin = 0; begin < n; begin += kBlock) {
    auto hit = [&](uint32_t i) {
      const int32_t key = Key(x + begin + i);
      return static_cast<uint32_t>((key >= least) & (key <= greatest)) << i;
    };
    uint32_t hits = 0;
    if (n - begin >= kBlock) {
#pragma GCC unroll 1  // unrolled before the vectoriser sees it, it would stay scalar
      for (uint32_t i = 0; i < kBlock; ++i) hits |= hit(i);
    } else {
      for (uint32_t i = 0; i < n - begin; ++i) hits |= hit(i);
    }
    for (; hits != 0; hits &= hits - 1) f(begin + static_cast<size_t>(__builtin_ctz(hits)));
  }
}

// How many keys are in [least, infinity]. In runs, so that the inner count fits the lanes of the keys.
size_t CountKeys(size_t n, const float* x, int32_t least) {
  constexpr size_t kLong = size_t{1} << 16;
  size_t total = 0;
  for (size_t begin = 0; begin < n; begin += kLong) {
    const size_t length = n - begin < kLong ? n - begin : kLong;
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
  size_t histogram[1 << 11] = {};
  int32_t worst = 0;
  for (size_t i = 0; i < n; ++i) {
    const int32_t key = Key(x + i);
    worst = key > worst ? key : worst;
    ++histogram[key >> 20];
  }
  if (worst > kInfinityKey) return -1;
  auto pick = [&](int32_t bucket) {
    for (; histogram[bucket] < k; --bucket) k -= histogram[bucket];
    return bucket;
  };
  int32_t found = pick((1 << 11) - 1) << 20;
  for (int shift = 10; shift >= 0; shift -= 10) {
    std::memset(histogram, 0, sizeof histogram);
    const int32_t greatest = found | ((1 << (shift + 10)) - 1);
    ForKeys(n, x, found, greatest, [&](size_t i) { ++histogram[Key(x + i) >> shift & 1023]; });
    found |= pick(1023) << shift;
  }
  std::memcpy(threshold, &found, sizeof found);
  return 0;
}

size_t TakeAtLeast(size_t n, const float* x, float threshold, size_t k, uint32_t* indices, float* values) {
  const int32_t least = Key(&threshold);
  const size_t larger = CountKeys(n, x, least + 1);
  size_t ties = k > larger ? k - larger : 0, taken = 0;
  ForKeys(n, x, least, kInfinityKey, [&](size_t i) {
    const bool tie = Key(x + i) == least;
    if (taken == k || (tie && ties == 0)) return;
    ties -= tie;
    indices[taken] = static_cast<uint32_t>(i);
    values[taken++] = x[i];
  });
  return taken;
}

constexpr TopkKernels kTopk = {CountAtLeast, KthMagnitude, TakeAtLeast};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_TOPK_GENERIC_H_
