// Depthwise convolutions: planes a few vectors wide row by row (depthwise_rows.h), small ones with a channel in each
// lane (depthwise_lanes.h), others each by itself from its phases, and windows that fit nowhere place by place
// (depthwise_direct.h).
#ifndef HEDGEROW_CONV_DEPTHWISE_H_
#define HEDGEROW_CONV_DEPTHWISE_H_

#include "conv/depthwise_direct.h"
#include "conv/depthwise_lanes.h"
#include "conv/depthwise_rows.h"
#include "conv/phases.h"
#include "isa/sums.h"

namespace hedgerow {
namespace {

// y[i] = init + sum over t of w[t] x[i + at[t]] for i < n, and up to kSlack - 1 more. kTaps: how many t, if known here.
template <Index kTaps>
HEDGEROW_INLINE void CorrelateTaps(Index taps, const float* w, const Index* at, float init, const float* x, Index n,
                                   float* y) {
  for (Index i = 0; i < n; i += 2 * kWidth) {
    V a = Splat(init), b = a;
    for (Index t = 0; t < (kTaps ? kTaps : taps); ++t) {
      a += w[t] * Load(x + i + at[t]);
      b += w[t] * Load(x + i + at[t] + kWidth);
    }
    Store(y + i, a);
    Store(y + i + kWidth, b);
  }
}

void Correlate(Index taps, const float* w, const Index* at, float init, const float* x, Index n, float* y) {
  taps == 9 ? CorrelateTaps<9>(taps, w, at, init, x, n, y) : CorrelateTaps<0>(taps, w, at, init, x, n, y);
}

// g's rows at the flat indices of their outputs, zeros between and after them.
void Spread(const Phases& p, const float* g, Index first, Index rows, float* flat) {
  if (p.band < p.s.OH) Zero(p.plane, flat);
  for (Index r = 0; r < rows; ++r) CopyShort(p.s.OW, g + (first + r) * p.s.OW, flat + r * p.columns);
}

void PhasesForward(const Geometry& s, const float* x, const float* w, const float* b, float* y) {
  const Phases p(s);
  if (!p.fits) return DirectForward(s, x, w, b, y);
  float padded[kPhaseFloats + kSlack] = {}, phases[kPhaseFloats + kSlack] = {}, out[kPhaseFloats + kSlack];
  Index at[kMostTaps];
  for (Index t = 0; t < p.taps; ++t) at[t] = p.phase[t] * p.plane + p.shift[t];
  for (Index i = 0; i < s.N * s.C; ++i, x += s.H * s.W, y += s.OH * s.OW) {
    p.ForBands([&](Index first, Index rows) {
      p.Split(x, first, padded, phases);
      Correlate(p.taps, w + i % s.C * p.taps, at, b ? b[i % s.C] : 0, phases, (rows - 1) * p.columns + s.OW, out);
      for (Index r = 0; r < rows; ++r) CopyShort(s.OW, out + r * p.columns, y + (first + r) * s.OW);
    });
  }
}

void PhasesDx(const Geometry& s, const float* g, const float* w, float* dx) {
  const Phases p(s);
  if (!p.fits) return DirectDx(s, g, w, dx);
  float padded[kPhaseFloats + kSlack], phases[kPhaseFloats + kSlack], flat[2 * kPhaseFloats + 2 * kSlack] = {};
  // Where the outputs start: an input looks back as far as the last tap's shift.
  float* outputs = flat + p.shift[p.taps - 1];
  for (Index i = 0; i < s.N * s.C; ++i, dx += s.H * s.W, g += s.OH * s.OW) {
    const float* kernel = w + i % s.C * p.taps;
    Zero(s.H * s.W, dx);
    p.ForBands([&](Index first, Index rows) {
      Spread(p, g, first, rows, outputs);
      for (Index phase = 0; phase < s.sh * s.sw; ++phase) {
        float weights[kMostTaps];
        Index at[kMostTaps], taps = 0;
        for (Index t = 0; t < p.taps; ++t) {
          if (p.phase[t] != phase) continue;
          weights[taps] = kernel[t];
          at[taps++] = -p.shift[t];
        }
        // Runs over into the next phase, which is written next.
        Correlate(taps, weights, at, 0, outputs, p.plane, phases + phase * p.plane);
      }
      p.AddJoined(phases, first, padded, dx);
    });
  }
}

// sum[t] += sum over i < n of g[i] x[i + at[t]], lane by lane; g is 0 past n.
template <Index kTaps>
HEDGEROW_INLINE void DotTaps(const Index* at, const float* g, const float* x, Index n, V* sum) {
  V taps[kTaps];
  for (Index t = 0; t < kTaps; ++t) taps[t] = sum[t];
  for (Index i = 0; i < n; i += kWidth) {
    const V v = Load(g + i);
    for (Index t = 0; t < kTaps; ++t) taps[t] += v * Load(x + i + at[t]);
  }
  for (Index t = 0; t < kTaps; ++t) sum[t] = taps[t];
}

// One channel's sums over many planes: in float32 for some vectors, then in double.
struct TapSums {
  static constexpr Index kMostVectors = 128;

  void Add(const Phases& p, const Index* at, const float* g, const float* x, Index n) {
    Index t = 0;
    for (; t + 9 <= p.taps; t += 9) DotTaps<9>(at + t, g, x, n, block + t);
    for (; t + 3 <= p.taps; t += 3) DotTaps<3>(at + t, g, x, n, block + t);
    for (; t < p.taps; ++t) DotTaps<1>(at + t, g, x, n, block + t);
    vectors += n / kWidth + 1;
    if (vectors >= kMostVectors) Flush(p.taps);
  }
  void Flush(Index taps) {
    for (Index t = 0; t < taps; ++t) {
      total[t] += SumLanes(block[t]);
      block[t] = V{};
    }
    vectors = 0;
  }

  V block[kMostTaps] = {};
  double total[kMostTaps] = {};
  Index vectors = 0;
};

void PhasesDw(const Geometry& s, const float* g, const float* x, float* dw) {
  const Phases p(s);
  if (!p.fits) return DirectDw(s, g, x, dw);
  float padded[kPhaseFloats + kSlack] = {}, phases[kPhaseFloats + kSlack] = {}, outputs[kPhaseFloats + kSlack] = {};
  Index at[kMostTaps];
  for (Index t = 0; t < p.taps; ++t) at[t] = p.phase[t] * p.plane + p.shift[t];
  for (Index c = 0; c < s.C; ++c) {
    TapSums sums;
    for (Index i = c; i < s.N * s.C; i += s.C) {
      p.ForBands([&](Index first, Index rows) {
        p.Split(x + i * s.H * s.W, first, padded, phases);
        Spread(p, g + i * s.OH * s.OW, first, rows, outputs);
        sums.Add(p, at, outputs, phases, (rows - 1) * p.columns + s.OW);
      });
    }
    sums.Flush(p.taps);
    for (Index t = 0; t < p.taps; ++t) dw[c * p.taps + t] = static_cast<float>(sums.total[t]);
  }
}

template <typename F>
void DepthwiseForward(const Call& call, const Geometry& s, const float* x, const float* w, const float* b, float* y,
                      F act) {
  if (FitsRows(s)) return (s.sw == 1 ? RowsForward<1, F> : RowsForward<2, F>)(call, s, x, w, b, y, act);
  if (FitsLanes(s)) return LanesForward(call, s, x, w, b, y, act);
  PhasesForward(s, x, w, b, y);
  Map(s.N * s.O * s.OH * s.OW, y, y, act);
}

void DepthwiseDx(const Call& call, const Geometry& s, const float* g, const float* w, float* dx) {
  if (FitsRows(s)) return RowsDx(call, s, g, w, dx);
  if (FitsLanes(s)) return LanesDx(call, s, g, w, dx);
  PhasesDx(s, g, w, dx);
}

void DepthwiseDw(const Call& call, const Geometry& s, const float* g, const float* x, float* dw) {
  if (FitsRows(s)) return (s.sw == 1 ? RowsDw<1> : RowsDw<2>)(call, s, g, x, dw);
  if (FitsLanes(s)) return LanesDw(call, s, g, x, dw);
  PhasesDw(s, g, x, dw);
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_DEPTHWISE_H_
