// An adaptive probability of a bit, in integers, so that a decoder on another machine follows to the bit.
#ifndef HEDGEROW_CONTEXT_COUNTER_H_
#define HEDGEROW_CONTEXT_COUNTER_H_

#include <cstdint>

namespace hedgerow {
namespace context {

constexpr uint32_t kLeastProbability = 16;  // of 65536

// 65536 / (1 + exp(-logit / 256)), straight between multiples of 64.
constexpr uint32_t ProbabilityOf(int32_t logit) {
  // round(65536 / (1 + exp(-i / 4)))
  constexpr uint16_t kSigmoid[] = {
      32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834, 57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030,
      64357, 64614, 64816, 64974, 65097};
  const int32_t size = logit < 0 ? -logit : logit, x = size < 1279 ? size : 1279;
  const uint32_t low = kSigmoid[x / 64], high = kSigmoid[x / 64 + 1];
  const uint32_t p = low + (high - low) * static_cast<uint32_t>(x % 64) / 64;
  return logit < 0 ? 65536 - p : p;
}

// 65536 / (n + 1.6): how far the n-th observation moves a counter.
struct Rates {
  constexpr Rates() {
    for (uint32_t n = 0; n < 256; ++n) of[n] = 655360 / (10 * n + 16);
  }
  uint32_t of[256] = {};
};
inline constexpr Rates kRates;

// The share of ones among the bits seen, in units of 2^-24: the n-th of them moves it by 1 / (n + 1.6), and the later
// ones by 1 / 256.6.
class Counter {
 public:
  Counter() = default;
  // As if a few bits had been seen that speak for this logit.
  explicit Counter(int32_t logit) : packed_(ProbabilityOf(logit) << 16 | 3) {}

  // Of 65536, and so far from 0 and 65536 that a surprise costs at most 12 bits.
  uint32_t Probability() const {
    const uint32_t p = packed_ >> 16;
    return p < kLeastProbability ? kLeastProbability : p > 65536 - kLeastProbability ? 65536 - kLeastProbability : p;
  }
  void Learn(bool bit) {
    const uint32_t seen = packed_ & 255;
    const int64_t share = packed_ >> 8, target = bit ? 0xffffff : 0;
    const uint32_t moved = static_cast<uint32_t>(share + ((target - share) * kRates.of[seen] >> 16));
    packed_ = moved << 8 | (seen + (seen < 255));
  }

 private:
  uint32_t packed_ = 1u << 31;  // the share, and in the low 8 bits how many bits were seen
};

}  // namespace context
}  // namespace hedgerow

#endif  // HEDGEROW_CONTEXT_COUNTER_H_
