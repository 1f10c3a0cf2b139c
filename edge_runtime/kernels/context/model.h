// Adaptive probabilities of bits: counters under three contexts, whose logits a learned weighting mixes (after Mahoney
// 2005, "Adaptive weighing of context models for lossless data compression").
//
// Everything is integers, so that a decoder on another machine follows to the bit.
#ifndef HEDGEROW_CONTEXT_MODEL_H_
#define HEDGEROW_CONTEXT_MODEL_H_

#include <cstddef>
#include <cstdint>

#include "context/tables.h"

namespace hedgerow {
namespace context {

inline constexpr Tables kTables;

// The share of ones among the bits seen, in units of 2^-32: the n-th of them moves it by 1 / (n + 1.6), and the later
// ones by 1 / (kMost + 1.6).
struct Counter {
  static constexpr uint32_t kMost = 255;

  // Of 65536, and so far from 0 and 65536 that a surprise costs at most 12 bits.
  uint32_t Probability() const {
    const uint32_t p = share >> 16;
    return p < kLeastProbability ? kLeastProbability : p > 65536 - kLeastProbability ? 65536 - kLeastProbability : p;
  }
  void Learn(bool bit) {
    const int64_t target = bit ? 0xffffffff : 0;
    share = static_cast<uint32_t>(share + ((target - share) * kTables.rate[seen] >> 16));
    seen += seen < kMost;
  }

  uint32_t share = 1u << 31;
  uint32_t seen = 0;
};

// What is known before a bit: for each mixed counter which one, and which weights mix them.
constexpr int kMixed = 3;
constexpr uint32_t kContexts[kMixed] = {128, 256, 512};
constexpr int kWeightSets = 8;
struct Context {
  uint32_t counter[kMixed];
  uint32_t weights;
};

// A bit at one place of a symbol's code.
class MixedBit {
 public:
  MixedBit() {
    for (auto& row : weights_) row[0] = 1 << 15, row[1] = row[2] = 1 << 14;
  }

  // Of 65536; stays until the next call.
  uint32_t predicted() const { return static_cast<uint32_t>(p_); }
  void Predict(const Context& c) {
    const int32_t* w = weights_[c.weights];
    int64_t sum = 0;
    for (int i = 0; i < kMixed; ++i) {
      logit_[i] = kTables.logit[At(c, i).share >> 20];
      sum += int64_t{w[i]} * logit_[i];
    }
    const int64_t logit = sum >> 16;
    p_ = kTables.probability[(logit < -kLogitLimit ? -kLogitLimit : logit > kLogitLimit ? kLogitLimit : logit) +
                             kLogitLimit];
  }
  // The bit that the last Predict was about.
  void Learn(const Context& c, bool bit) {
    const int64_t error = ((bit ? 65536 : 0) - p_) * 6;
    for (int i = 0; i < kMixed; ++i) {
      int32_t& w = weights_[c.weights][i];
      const int64_t moved = w + ((logit_[i] * error + (1 << 17)) >> 18);
      w = static_cast<int32_t>(moved < -kMostWeight ? -kMostWeight : moved > kMostWeight ? kMostWeight : moved);
      At(c, i).Learn(bit);
    }
  }
  // Of the first counter alone, for estimates.
  uint32_t Guess(const Context& c) const { return counters_[c.counter[0]].Probability(); }

 private:
  static constexpr int64_t kMostWeight = 1 << 20;

  Counter& At(const Context& c, int i) {
    constexpr uint32_t kFirst[kMixed] = {0, kContexts[0], kContexts[0] + kContexts[1]};
    return counters_[kFirst[i] + c.counter[i]];
  }

  Counter counters_[kContexts[0] + kContexts[1] + kContexts[2]];
  int32_t weights_[kWeightSets][kMixed];
  int32_t logit_[kMixed] = {};
  int32_t p_ = 0;
};

}  // namespace context
}  // namespace hedgerow

#endif  // HEDGEROW_CONTEXT_MODEL_H_
