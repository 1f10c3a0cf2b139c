// The logistic function and its inverse in integers, so that every machine computes the same probabilities.
//
// A logit is in units of 1/256, between -kLogitLimit and kLogitLimit; a probability in units of 1/65536.
#ifndef HEDGEROW_CONTEXT_TABLES_H_
#define HEDGEROW_CONTEXT_TABLES_H_

#include <cstdint>

namespace hedgerow {
namespace context {

constexpr int32_t kLogitLimit = 3071;
constexpr int32_t kLeastProbability = 16;

// round(65536 / (1 + exp(-i / 4))); between these the function is taken as straight.
constexpr uint16_t kSigmoid[] = {
    32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834, 57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030,
    64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328, 65374, 65410, 65438, 65459, 65476, 65489, 65500, 65508,
    65514, 65519, 65523, 65526, 65528, 65530, 65531, 65532, 65533, 65534, 65534, 65535, 65535, 65535, 65535, 65535,
    65535, 65535};

struct Tables {
  constexpr Tables() {
    for (int32_t x = 0; x <= kLogitLimit; ++x) {
      const int32_t low = kSigmoid[x / 64], high = kSigmoid[x / 64 + 1];
      const int32_t p = low + (high - low) * (x % 64) / 64;
      const int32_t most = 65536 - kLeastProbability;
      probability[kLogitLimit + x] = static_cast<uint16_t>(p < most ? p : most);
      probability[kLogitLimit - x] = static_cast<uint16_t>(65536 - (p < most ? p : most));
    }
    int32_t x = 0;
    for (int32_t p = 0; p < 4096; ++p) {
      while (x < 2 * kLogitLimit && probability[x] < p * 16 + 8) ++x;
      logit[p] = static_cast<int16_t>(x - kLogitLimit);
    }
    for (uint32_t n = 0; n < 256; ++n) rate[n] = 655360 / (10 * n + 16);
  }

  uint16_t probability[2 * kLogitLimit + 1] = {};  // of logit i - kLogitLimit
  int16_t logit[4096] = {};                        // the least whose probability is not below (i + 1/2) / 4096
  uint32_t rate[256] = {};                         // 65536 / (n + 1.6): how far the n-th observation moves a counter
};

}  // namespace context
}  // namespace hedgerow

#endif  // HEDGEROW_CONTEXT_TABLES_H_
