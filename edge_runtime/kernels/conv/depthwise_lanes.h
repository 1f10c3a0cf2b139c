// Depthwise convolutions of small planes: kWidth channels at once, one in each lane, so that neither the edges nor the
// width of a plane cost anything. Planes are transposed to [place][lane] on the way in and back on the way out.
#ifndef HEDGEROW_CONV_DEPTHWISE_LANES_H_
#define HEDGEROW_CONV_DEPTHWISE_LANES_H_

#include "conv/geometry.h"
#include "elementwise/activation.h"
#include "isa/sums.h"
#include "isa/transpose.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

// f(i, floats i of all planes) for i < n. The planes are `apart` floats from one another; past the last of the `lanes`
// the last one again.
template <typename F>
HEDGEROW_INLINE void ForPlaces(const float* planes, Index apart, Index lanes, Index n, F f) {
  ForVectors(n, [&](Index i, Index k) {
    V rows[kWidth];
    for (Index lane = 0; lane < kWidth; ++lane) rows[lane] = LoadPart(planes + Min(lane, lanes - 1) * apart + i, k);
    Transpose(rows);
    for (Index j = 0; j < k; ++j) f(i + j, rows[j]);
  });
}

HEDGEROW_INLINE void StorePlaces(const float* places, Index n, float* planes, Index apart, Index lanes) {
  ForVectors(n, [&](Index i, Index k) {
    V rows[kWidth];
    for (Index j = 0; j < kWidth; ++j) rows[j] = Load(places + (i + Min(j, k - 1)) * kWidth);
    Transpose(rows);
    for (Index lane = 0; lane < lanes; ++lane) StorePart(planes + lane * apart + i, rows[lane], k);
  });
}

// Places [rows][columns] with a frame of zeros: those of a plane of `width` stand from (top, left) on.
struct Frame {
  static constexpr Index kPlaces = 400;

  bool Fits() const { return rows <= kPlaces && columns <= kPlaces && rows * columns <= kPlaces; }
  void Clear(float* places) const { Zero(rows * columns * kWidth, places); }
  void Fill(const float* planes, Index apart, Index lanes, Index n, float* places) const {
    float* to = places + (top * columns + left) * kWidth;
    Index column = 0;
    ForPlaces(planes, apart, lanes, n, [&](Index, V v) {
      Store(to, v);
      to += kWidth;
      if (++column == width) {
        column = 0;
        to += (columns - width) * kWidth;
      }
    });
  }

  Index rows, columns, top, left, width;
};

// What a convolution and its gradients read with a frame: for the gradient of x, g, such that every element of x finds
// all its taps inside.
HEDGEROW_INLINE Frame FrameOfX(const Geometry& s) {
  return {Max(s.H + s.ph, (s.OH - 1) * s.sh + s.kh), Max(s.W + s.pw, (s.OW - 1) * s.sw + s.kw), s.ph, s.pw, s.W};
}
HEDGEROW_INLINE Frame FrameOfG(const Geometry& s) {
  const Index top = (s.kh - 1) / s.sh, left = (s.kw - 1) / s.sw;
  return {top + Max(s.OH, (s.H - 1 + s.ph) / s.sh + 1), left + Max(s.OW, (s.W - 1 + s.pw) / s.sw + 1), top, left, s.OW};
}

constexpr Index kLaneTaps = 49;

HEDGEROW_INLINE bool FitsLanes(const Geometry& s) {
  return 2 * s.C >= kWidth && s.kh <= kLaneTaps && s.kw <= kLaneTaps && s.kh * s.kw <= kLaneTaps &&
         FrameOfX(s).Fits() && FrameOfG(s).Fits() && s.H * s.W <= Frame::kPlaces && s.OH * s.OW <= Frame::kPlaces;
}

// Taps of a window in lanes: what they weigh, and how many floats from the window's place they stand.
struct LaneTaps {
  void Add(V w, Index at) {
    weight[count] = w;
    offset[count++] = at * kWidth;
  }

  Index count = 0, offset[kLaneTaps];
  V weight[kLaneTaps];
};

// A walk over places, in floats.
struct Walk {
  Walk(Index row, Index column) : row(row * kWidth), column(column * kWidth) {}
  Index row, column;
};

// to = f(init + sum over the taps), for rows x columns windows. kTaps: how many taps, if known here, else 0.
template <Index kTaps, typename F>
HEDGEROW_INLINE void CorrelateLanes(const LaneTaps& taps, V init, Index rows, Index columns, const float* from,
                                    Walk step, float* to, Walk to_step, F f) {
  const Index count = kTaps ? kTaps : taps.count;
  V weight[kTaps ? kTaps : kLaneTaps];
  for (Index t = 0; t < count; ++t) weight[t] = taps.weight[t];
  for (Index r = 0; r < rows; ++r, from += step.row, to += to_step.row) {
    Index c = 0;
    for (; c + 2 <= columns; c += 2) {
      const float *p = from + c * step.column, *q = p + step.column;
      V a = init, b = init;
      for (Index t = 0; t < count; ++t) {
        a += weight[t] * Load(p + taps.offset[t]);
        b += weight[t] * Load(q + taps.offset[t]);
      }
      Store(to + c * to_step.column, f(a));
      Store(to + (c + 1) * to_step.column, f(b));
    }
    if (c < columns) {
      const float* p = from + c * step.column;
      V a = init;
      for (Index t = 0; t < count; ++t) a += weight[t] * Load(p + taps.offset[t]);
      Store(to + c * to_step.column, f(a));
    }
  }
}

template <typename F>
void CorrelateLanes(const LaneTaps& taps, V init, Index rows, Index columns, const float* from, Walk step, float* to,
                    Walk to_step, F f) {
  switch (taps.count) {
    case 1: return CorrelateLanes<1>(taps, init, rows, columns, from, step, to, to_step, f);
    case 2: return CorrelateLanes<2>(taps, init, rows, columns, from, step, to, to_step, f);
    case 4: return CorrelateLanes<4>(taps, init, rows, columns, from, step, to, to_step, f);
    case 9: return CorrelateLanes<9>(taps, init, rows, columns, from, step, to, to_step, f);
    default: return CorrelateLanes<0>(taps, init, rows, columns, from, step, to, to_step, f);
  }
}

// f(group of channels, first image, one past the last) for the images of every group, shared by the team.
template <typename F>
void ForLaneGroups(const Call& call, const Geometry& s, F f) {
  const double ns = static_cast<double>(s.H * s.W + s.OH * s.OW * s.kh * s.kw);
  ForRanges(call, (s.C + kWidth - 1) / kWidth * s.N, ns, 1, [=](Index first, Index last) {
    while (first < last) {
      const Index group = first / s.N, end = Min(last, (group + 1) * s.N);
      f(group * kWidth, first - group * s.N, end - group * s.N);
      first = end;
    }
  });
}

template <typename F>
void LanesForward(const Call& call, const Geometry& s, const float* x, const float* w, const float* b, float* y, F f) {
  const Frame frame = FrameOfX(s);
  ForLaneGroups(call, s, [=](Index c, Index first, Index last) {
    alignas(64) float in[Frame::kPlaces * kWidth], out[Frame::kPlaces * kWidth];
    const Index lanes = Min(kWidth, s.C - c);
    LaneTaps taps;
    ForPlaces(w + c * s.kh * s.kw, s.kh * s.kw, lanes, s.kh * s.kw, [&](Index t, V v) {
      taps.Add(v, t / s.kw * frame.columns + t % s.kw);
    });
    const V init = b ? LoadPart(b + c, lanes) : V{};
    frame.Clear(in);
    for (Index i = first; i < last; ++i) {
      frame.Fill(x + (i * s.C + c) * s.H * s.W, s.H * s.W, lanes, s.H * s.W, in);
      CorrelateLanes(taps, init, s.OH, s.OW, in, Walk(s.sh * frame.columns, s.sw), out, Walk(s.OW, 1), f);
      StorePlaces(out, s.OH * s.OW, y + (i * s.C + c) * s.OH * s.OW, s.OH * s.OW, lanes);
    }
  });
}

// An element (iy, ix) of x has the taps (k, l) with (iy + ph - k) a multiple of sh and (ix + pw - l) of sw: which ones
// is the same for all elements of one of sh x sw phases, so each phase is a convolution of g.
void LanesDx(const Call& call, const Geometry& s, const float* g, const float* w, float* dx) {
  const Frame frame = FrameOfG(s);
  ForLaneGroups(call, s, [=](Index c, Index first, Index last) {
    alignas(64) float in[Frame::kPlaces * kWidth], out[Frame::kPlaces * kWidth];
    const Index lanes = Min(kWidth, s.C - c);
    V weight[kLaneTaps];
    ForPlaces(w + c * s.kh * s.kw, s.kh * s.kw, lanes, s.kh * s.kw, [&](Index t, V v) { weight[t] = v; });
    frame.Clear(in);
    for (Index i = first; i < last; ++i) {
      frame.Fill(g + (i * s.C + c) * s.OH * s.OW, s.OH * s.OW, lanes, s.OH * s.OW, in);
      for (Index y = 0; y < Min(s.sh, s.H); ++y) {
        for (Index x = 0; x < Min(s.sw, s.W); ++x) {
          LaneTaps taps;
          const Index k0 = (y + s.ph) % s.sh, l0 = (x + s.pw) % s.sw;
          for (Index k = k0; k < s.kh; k += s.sh) {
            for (Index l = l0; l < s.kw; l += s.sw) {
              taps.Add(weight[k * s.kw + l], -(k / s.sh * frame.columns + l / s.sw));
            }
          }
          const Index row = frame.top + (y + s.ph) / s.sh, column = frame.left + (x + s.pw) / s.sw;
          CorrelateLanes(taps, V{}, (s.H - y + s.sh - 1) / s.sh, (s.W - x + s.sw - 1) / s.sw,
                         in + (row * frame.columns + column) * kWidth, Walk(frame.columns, 1),
                         out + (y * s.W + x) * kWidth, Walk(s.sh * s.W, s.sw), [](V v) { return v; });
        }
      }
      StorePlaces(out, s.H * s.W, dx + (i * s.C + c) * s.H * s.W, s.H * s.W, lanes);
    }
  });
}

// sum[t] += sum over rows x columns windows of g times the tap.
template <Index kTaps>
HEDGEROW_INLINE void DotLanes(const Index* offset, Index rows, Index columns, const float* g, const float* from,
                              Walk step, V* sum) {
  V taps[kTaps];
  for (Index t = 0; t < kTaps; ++t) taps[t] = sum[t];
  for (Index r = 0; r < rows; ++r, from += step.row) {
    const float* p = from;
    for (Index c = 0; c < columns; ++c, p += step.column, g += kWidth) {
      const V v = Load(g);
      for (Index t = 0; t < kTaps; ++t) taps[t] += v * Load(p + offset[t]);
    }
  }
  for (Index t = 0; t < kTaps; ++t) sum[t] = taps[t];
}

using LaneSumsOfTaps = TapBlocks<kLaneTaps>;

// kWidth channels of one image: g and x in lanes, x with its frame.
void AddImage(const Geometry& s, const Frame& frame, const Index* offset, const float* g, const float* x,
              LaneSumsOfTaps& sums) {
  const Index rows_at_once = Max(1, LaneSumsOfTaps::kBlock / s.OW);
  const Walk step(s.sh * frame.columns, s.sw);
  for (Index r = 0; r < s.OH; r += rows_at_once) {
    const Index rows = Min(rows_at_once, s.OH - r);
    const float *from = x + r * step.row, *gs = g + r * s.OW * kWidth;
    sums.Make(rows * s.OW);
    V* block = sums.block;
    Index t = 0;
    for (; t + 9 <= sums.taps; t += 9) DotLanes<9>(offset + t, rows, s.OW, gs, from, step, block + t);
    for (; t + 3 <= sums.taps; t += 3) DotLanes<3>(offset + t, rows, s.OW, gs, from, step, block + t);
    for (; t < sums.taps; ++t) DotLanes<1>(offset + t, rows, s.OW, gs, from, step, block + t);
  }
}

void LanesDw(const Call& call, const Geometry& s, const float* g, const float* x, float* dw) {
  // Neighbouring channels go together through the images, for memory is fast where it is read in order.
  constexpr Index kGroups = 4;
  const Frame frame = FrameOfX(s);
  const Index taps = s.kh * s.kw, groups = (s.C + kWidth - 1) / kWidth;
  const double ns = static_cast<double>(s.N * (s.H * s.W + s.OH * s.OW * taps));
  ForRanges(call, groups, ns, 1, [=](Index begin, Index end) {
    alignas(64) float in[Frame::kPlaces * kWidth], outputs[Frame::kPlaces * kWidth];
    LaneSumsOfTaps sums[kGroups];
    Index offset[kLaneTaps];
    for (Index t = 0; t < taps; ++t) offset[t] = (t / s.kw * frame.columns + t % s.kw) * kWidth;
    frame.Clear(in);
    for (Index first = begin; first < end; first += kGroups) {
      const Index last = Min(end, first + kGroups);
      for (Index group = first; group < last; ++group) sums[group - first].Clear(taps);
      for (Index i = 0; i < s.N; ++i) {
        for (Index group = first; group < last; ++group) {
          const Index c = group * kWidth, lanes = Min(kWidth, s.C - c);
          frame.Fill(x + (i * s.C + c) * s.H * s.W, s.H * s.W, lanes, s.H * s.W, in);
          ForPlaces(g + (i * s.C + c) * s.OH * s.OW, s.OH * s.OW, lanes, s.OH * s.OW,
                    [&](Index o, V v) { Store(outputs + o * kWidth, v); });
          AddImage(s, frame, offset, outputs, in, sums[group - first]);
        }
      }
      for (Index group = first; group < last; ++group) {
        LaneSumsOfTaps& own = sums[group - first];
        own.Flush();
        for (Index c = group * kWidth; c < Min(s.C, (group + 1) * kWidth); ++c) {
          for (Index t = 0; t < taps; ++t) dw[c * taps + t] = static_cast<float>(own.total[t][c - group * kWidth]);
        }
      }
    }
  });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_DEPTHWISE_LANES_H_
