// Matrices of small integers as few bytes: each integer is coded after what its neighbours lead one to expect.
//
// A plane is a matrix of `rows` x `columns` integers of at most kMostMagnitude. A row is coded as a bit that says
// whether its integers follow, from left to right; else they are 0. Of the integers q, with i and j the row and column,
// missing neighbours 0, and a = min(|q|, 40):
//
//   predicted  mu  = floor((sum over the taps t of taps[t] * q[i][j - distance t] + 4) / 8), distances 1, 2 and, with a
//                    lag, lag, lag - 1, lag + 1; brought to within +-kMostMagnitude
//   near       n   = 4 a[i][j-1] + 2 a[i][j-2] + 4 a[i-1][j] + 3 a[i][j-lag] + a[i][j-lag+1]; a[i][j-3] in place of
//                    the last two without a lag
//   along      r   = running mean of 128 a in this row, from 0: r += floor((128 a - r) / 16)
//   across     c[j]= running mean of 128 a in this column: c += floor((128 a - c) / 2^s) with
//                    s = min(5, 1 + floor(log2(i + 1)))
//   class(v)       = 0 for 0, 1 for 1, else 2 floor(log2 v) + the bit after the first, at most 31
//   expected   m   = class(floor((8 n + 3 floor(c / 4) + r) / 8))
//
// A row of zeros moves its columns' means, and nothing else. The difference e = q - mu is coded as bits, each with a
// counter of its own (counter.h) for what is known before it:
//
//   e != 0             mu != 0, m, and the row class, which is given, or class(floor(r / 4))
//   its sign           the signs of mu and of q[i][j-1]
//   k ones and a zero  where |e| is in [2^k, 2^(k+1)): how many came before, alike from the 7th on, min(|mu|, 3) and m
//   k bits             of |e| below the first one, from the highest: min(k, 9) and m for that one, none for the others
//   a row's first bit  those of the two rows before it
//
// Each of the kinds of planes has counters of its own. What they begin with are straight lines through what recorded
// updates led to: PlaneModel().
#ifndef HEDGEROW_CONTEXT_CONTEXT_H_
#define HEDGEROW_CONTEXT_CONTEXT_H_

#include <cstddef>
#include <cstdint>

#include "context/counter.h"
#include "context/range_coder.h"

namespace hedgerow {
namespace context {

constexpr int32_t kMostMagnitude = 32767;
constexpr int kTaps = 5, kKinds = 2, kSlots = 16;
constexpr int kMores = 7;
constexpr uint32_t kClasses = 32;

struct Plane {
  size_t rows, columns;
  const uint8_t* row_class;  // below kClasses, for each row; nullptr: from the row itself
  size_t lag;                // 0 for none, else 3 or more
  int32_t taps[kTaps];       // in eighths
};

// How the encoder picks the integers of real values x, in steps: so that the sum of squared errors + lambda * bits is
// small. What |q| = 1 decodes to is d1, and |q| > 1 to |q| - 1 + d2.
struct Choice {
  float lambda, d1, d2;
};

// What the counters of one kind of plane have learned.
struct PlaneModel {
  PlaneModel();

  Counter some[kClasses][kClasses][2], more[kMores][kClasses][4], sign[9], row[4], high[10][kClasses];
};

// A stream in progress.
struct State {
  Encoder encoder;
  Decoder decoder;
  PlaneModel planes[kKinds];
  Counter numbers[kSlots][64];
};

// Codes one unsigned number v below 2^31; numbers of one slot are expected to be alike. With v + 1 in [2^k, 2^(k+1)): k
// ones and a zero, then the k bits below the first from the highest, with a counter for each slot and place of both.
void PutNumber(State& state, int slot, uint32_t value);
// At most `most`; returns false if the stream has a larger one.
bool GetNumber(State& state, int slot, uint32_t most, uint32_t* value);

// What coding a plane needs beside it, aligned to 2 bytes.
size_t WorkspaceBytes(size_t columns, size_t lag);

// Counts and sums of |x| where |q| is 1, and of |x| - |q| + 1 where it is
// more, are added to `seen`, so that the caller can place d1 and d2.
struct Seen {
  double ones, ones_sum, more, more_sum;
};
void PutPlane(State& state, int kind, const Plane& plane, const Choice& choice, const float* x, int16_t* q,
              void* workspace, Seen* seen);
// Returns false if the stream has an integer that is too large.
bool GetPlane(State& state, int kind, const Plane& plane, int16_t* q, void* workspace);

// x = scale * sign(q) * level, where the level of |q| is 0, d1, and kLevelUnit * (|q| - 1) + d2 for 2 and more.
constexpr int32_t kLevelUnit = 64;
struct Levels {
  int32_t d1, d2;
  float scale;
};
void DecodeLevels(size_t n, const int16_t* q, const Levels& levels, float* x);

}  // namespace context
}  // namespace hedgerow

#endif  // HEDGEROW_CONTEXT_CONTEXT_H_
