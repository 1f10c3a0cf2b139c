// Dropout from a counter-based generator (ops.h): the same element of the same step gets the same number whatever the
// batch it stands in, so a batch may be split and a forward pass repeated.
#ifndef HEDGEROW_RANDOM_GENERIC_H_
#define HEDGEROW_RANDOM_GENERIC_H_

#include "isa/simd.h"
#include "program/call.h"

namespace hedgerow {
namespace {

// Philox4x32-10 (Salmon et al. 2011) of one counter, in place.
HEDGEROW_INLINE void Philox(uint32_t (&c)[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t high0 = static_cast<uint32_t>(p0 >> 32), high1 = static_cast<uint32_t>(p1 >> 32);
    c[0] = high1 ^ c[1] ^ key0;
    c[1] = static_cast<uint32_t>(p1);
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

Status dropout(const Call& call) {
  const Index n = call.size(0);
  const auto op = static_cast<uint32_t>(call.op.ints[1]);
  const float* x = call.f32(0);
  const int64_t* random = call.i64(1);
  float* y = call.f32(2);
  const auto seed = static_cast<uint64_t>(random[0]), step = static_cast<uint64_t>(random[1]);
  // Unsigned, so that any first row is defined: the counter wraps.
  uint64_t counter = static_cast<uint64_t>(random[2]) * static_cast<uint64_t>(call.op.ints[2]);
  const double p = call.op.floats[0];
  const float keep = static_cast<float>(1 / (1 - p));
  for (Index i = 0; i < n;) {
    uint32_t words[4] = {static_cast<uint32_t>(counter >> 2), static_cast<uint32_t>(counter >> 34),
                         static_cast<uint32_t>(step), op};
    Philox(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    for (Index word = static_cast<Index>(counter & 3); word < 4 && i < n; ++word, ++i, ++counter) {
      y[i] = (words[word] >> 8) * 0x1p-24 < p ? 0.f : x[i] * keep;
    }
  }
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_RANDOM_GENERIC_H_
