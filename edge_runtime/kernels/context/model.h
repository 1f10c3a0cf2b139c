// Adaptive probabilities of bits: counters under two contexts, whose logits learned weights mix (after Mahoney
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

// The share of ones among the bits seen, in units of 2^-24: the n-th of them moves it by 1 / (n + 1.6), and the later
// ones by 1 / 256.6.
class Counter {
 public:
  // Of 65536, and so far from 0 and 65536 that a surprise costs at most 12 bits.
  uint32_t Probability() const {
    const uint32_t p = packed_ >> 16;
    return p < kLeastProbability ? kLeastProbability : p > 65536 - kLeastProbability ? 65536 - kLeastProbability : p;
  }
  int32_t Logit() const { return kTables.logit[packed_ >> 20]; }
  void Learn(bool bit) {
    const uint32_t seen = packed_ & 255;
    const int64_t share = packed_ >> 8, target = bit ? 0xffffff : 0;
    const uint32_t moved = static_cast<uint32_t>(share + ((target - share) * kTables.rate[seen] >> 16));
    packed_ = moved << 8 | (seen + (seen < 255));
  }

 private:
  uint32_t packed_ = 1u << 31;  // the share, and in the low 8 bits how many bits were seen
};

// What is known before a bit: which counter of each of two tables, and which weights mix them.
constexpr uint32_t kFirstContexts = 128, kSecondContexts = 512, kWeightSets = 8;
struct Context {
  uint32_t first, second, weights;
};

// A bit at one place of a symbol's code.
class MixedBit {
 public:
  MixedBit() {
    for (auto& pair : weights_) pair[0] = pair[1] = 1 << 15;
  }

  // Of 65536; stays until the next call.
  uint32_t predicted() const { return static_cast<uint32_t>(p_); }
  void Predict(const Context& c) {
    const int32_t* w = weights_[c.weights];
    logit_[0] = first_[c.first].Logit();
    logit_[1] = second_[c.second].Logit();
    const int32_t logit = (w[0] * logit_[0] + w[1] * logit_[1]) >> 16;
    p_ = kTables.probability[(logit < -kLogitLimit ? -kLogitLimit : logit > kLogitLimit ? kLogitLimit : logit) +
                             kLogitLimit];
  }
  // The bit that the last Predict was about.
  void Learn(const Context& c, bool bit) {
    const int32_t error = ((bit ? 65536 : 0) - p_) * 6;
    for (int i = 0; i < 2; ++i) {
      int32_t& w = weights_[c.weights][i];
      w += (logit_[i] * error + (1 << 17)) >> 18;
      w = w < -kMostWeight ? -kMostWeight : w > kMostWeight ? kMostWeight : w;
    }
    first_[c.first].Learn(bit);
    second_[c.second].Learn(bit);
  }

 private:
  static constexpr int32_t kMostWeight = 1 << 18;
  // So that no sum of two products passes 32 bits.
  static_assert(2 * int64_t{kMostWeight} * kLogitLimit < INT32_MAX && int64_t{65536} * 6 * kLogitLimit < INT32_MAX);

  Counter first_[kFirstContexts], second_[kSecondContexts];
  int32_t weights_[kWeightSets][2];
  int32_t logit_[2] = {};
  int32_t p_ = 0;
};

}  // namespace context
}  // namespace hedgerow

#endif  // HEDGEROW_CONTEXT_MODEL_H_
