// Depthwise 3x3 convolutions with a padding of 1 and a stride of 1 or 2, of planes at least a vector wide: the rows of
// a few columns pass through registers, where each meets the three rows of the kernel. A plane is cut into strips of
// kWidth output columns, of which the last may overlap the one before it.
#ifndef HEDGEROW_CONV_DEPTHWISE_ROWS_H_
#define HEDGEROW_CONV_DEPTHWISE_ROWS_H_

#include "conv/geometry.h"
#include "elementwise/activation.h"
#include "isa/deal.h"
#include "isa/sums.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

HEDGEROW_INLINE bool FitsRows(const Geometry& s) {
  return s.kh == 3 && s.kw == 3 && s.ph == 1 && s.pw == 1 && s.sh == s.sw && s.sw <= 2 && s.OW >= kWidth;
}

// {before, v[0], v[1] ...}, where only the last lane of `before` counts, and {v[1], v[2] ..., after}, only the first.
HEDGEROW_INLINE V After(V before, V v) {
  VI from;
  for (int i = 0; i < kWidth; ++i) from[i] = static_cast<int>(kWidth) - 1 + i;
  return Shuffle(before, v, from);
}
HEDGEROW_INLINE V Before(V v, V after) {
  VI from;
  for (int i = 0; i < kWidth; ++i) from[i] = 1 + i;
  return Shuffle(v, after, from);
}

// What a row of x gives kWidth outputs next to one another: their columns of taps.
struct Taps3 {
  V left, middle, right;
  HEDGEROW_INLINE V Times(const V* w) const { return w[0] * left + w[1] * middle + w[2] * right; }
  HEDGEROW_INLINE V Onto(V sum, const V* w) const {
    sum += w[0] * left;
    sum += w[1] * middle;
    sum += w[2] * right;
    return sum;
  }
};

// A strip of outputs from column `first` on, and whether it stands at the left or the right edge: known when this is
// compiled, so that no row asks.
template <Index kStride, bool kLeft, bool kRight>
struct Strip {
  HEDGEROW_INLINE Taps3 Read(const float* row) const {
    if constexpr (kStride == 1) {
      const V middle = Load(row + first);
      return {kLeft ? After(V{}, middle) : Load(row + first - 1), middle,
              kRight ? Before(middle, V{}) : Load(row + first + 1)};
    } else {
      const float* p = row + 2 * first;
      // An odd width ends in a column that nobody has to the right of it.
      const V a = Load(p), b = kRight ? LoadPart(p + kWidth, width - 2 * first - kWidth) : Load(p + kWidth);
      const V right = Odds(a, b);
      return {After(kLeft ? V{} : Splat(p[-1]), right), Evens(a, b), right};
    }
  }
  // A row of g and the same row one column on.
  HEDGEROW_INLINE V ReadNext(const float* row, V here) const {
    return kRight ? Before(here, V{}) : Load(row + first + 1);
  }

  Index first, width;
};

// f(strip, how many of its columns an earlier one has) for the strips of a plane with `outputs` columns.
template <Index kStride, typename F>
HEDGEROW_INLINE void ForStrips(Index outputs, Index width, F f) {
  if (outputs == kWidth) return f(Strip<kStride, true, true>{0, width}, 0);
  f(Strip<kStride, true, false>{0, width}, 0);
  Index first = kWidth;
  for (; first + kWidth < outputs; first += kWidth) f(Strip<kStride, false, false>{first, width}, 0);
  f(Strip<kStride, false, true>{outputs - kWidth, width}, first + kWidth - outputs);
}

// y = act(correlation of x and w + init): one strip.
template <Index kStride, typename Strip, typename F>
HEDGEROW_INLINE void RowsOfStrip(const Geometry& s, const Strip strip, const float* x, const V (&w)[9], V init,
                                 float* y, F act) {
  y += strip.first;
  if constexpr (kStride == 1) {
    Taps3 row = strip.Read(x);
    V above = row.Onto(init, w + 3), here = row.Onto(init, w);  // what rows so far have given outputs r and r + 1
    for (Index r = 0; r + 1 < s.H; ++r, y += s.OW) {
      x += s.W;
      row = strip.Read(x);
      Store(y, act(row.Onto(above, w + 6)));
      above = row.Onto(here, w + 3);
      here = row.Onto(init, w);
    }
    Store(y, act(above));
  } else {
    V above = init;
    for (Index r = 0; r < s.OH; ++r, y += s.OW, x += 2 * s.W) {
      V sum = strip.Read(x).Onto(above, w + 3);
      if (2 * r + 1 < s.H) {
        const Taps3 row = strip.Read(x + s.W);
        sum = row.Onto(sum, w + 6);
        above = row.Onto(init, w);
      }
      Store(y, act(sum));
    }
  }
}

template <Index kStride, typename F>
void RowsForward(const Call& call, const Geometry& s, const float* x, const float* w, const float* b, float* y, F act) {
  ForRanges(call, s.N * s.C, static_cast<double>(s.OH * s.OW) * 0.5, 1, [=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      V weights[9];
      for (Index t = 0; t < 9; ++t) weights[t] = Splat(w[i % s.C * 9 + t]);
      const V init = Splat(b ? b[i % s.C] : 0);
      ForStrips<kStride>(s.OW, s.W, [&](const auto strip, Index) {
        RowsOfStrip<kStride>(s, strip, x + i * s.H * s.W, weights, init, y + i * s.OH * s.OW, act);
      });
    }
  });
}

// Row (2 r) of dx takes g's row r through the kernel's middle row, and row (2 r + 1) takes rows r and r + 1 through the
// last and the first; columns likewise.
template <typename Strip>
HEDGEROW_INLINE void SpreadStrip(const Geometry& s, const Strip strip, const float* g, const V (&w)[9], float* dx) {
  const Index n = Min(2 * kWidth, s.W - 2 * strip.first);
  dx += 2 * strip.first;
  V here = Load(g + strip.first), next = strip.ReadNext(g, here);
  for (Index r = 0; r < s.OH; ++r, dx += 2 * s.W) {
    StoreInTurn(w[4] * here, w[3] * next + w[5] * here, n, dx);
    const bool last = r + 1 == s.OH;
    g += s.OW;
    const V below = last ? V{} : Load(g + strip.first), below_next = last ? V{} : strip.ReadNext(g, below);
    if (2 * r + 1 < s.H) {
      const V odds = w[0] * below_next + w[2] * below;
      StoreInTurn(w[1] * below + w[7] * here, odds + (w[6] * next + w[8] * here), n, dx + s.W);
    }
    here = below;
    next = below_next;
  }
}

void RowsDx(const Call& call, const Geometry& s, const float* g, const float* w, float* dx) {
  ForRanges(call, s.N * s.C, static_cast<double>(s.H * s.W) * 0.5, 1, [=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      V weights[9];
      // With a stride of 1 it is the convolution of g with the kernel turned round.
      for (Index t = 0; t < 9; ++t) weights[t] = Splat(w[i % s.C * 9 + (s.sw == 1 ? 8 - t : t)]);
      const float* from = g + i * s.OH * s.OW;
      float* to = dx + i * s.H * s.W;
      if (s.sw == 1) {
        ForStrips<1>(s.W, s.W, [&](const auto strip, Index) {
          RowsOfStrip<1>(s, strip, from, weights, V{}, to, [](V v) { return v; });
        });
      } else {
        ForStrips<2>(s.OW, s.W, [&](const auto strip, Index) { SpreadStrip(s, strip, from, weights, to); });
      }
    }
  });
}

// sums[t] += sum of g times tap t over output rows [top, bottom) of a strip, without its first `had` columns.
template <Index kStride, typename Strip>
HEDGEROW_INLINE void DotStrip(const Geometry& s, const Strip strip, Index had, Index top, Index bottom, const float* g,
                              const float* x, V (&sums)[9]) {
  V sum[9];
  for (Index t = 0; t < 9; ++t) sum[t] = sums[t];
  VI lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  const VI counts = lane >= static_cast<int32_t>(had);
  auto add = [&](V v, const Taps3& row, Index t) {
    sum[t] += v * row.left;
    sum[t + 1] += v * row.middle;
    sum[t + 2] += v * row.right;
  };
  auto read = [&](Index r) {
    const V v = Load(g + r * s.OW + strip.first);
    return had ? Bits<V>(Bits<VI>(v) & counts) : v;
  };
  // Image row y meets outputs through kernel row 2, 1 and 0: those of which it is the last, the middle, the first row.
  if constexpr (kStride == 1) {
    V v = read(top), above{};
    if (top > 0) add(v, strip.Read(x + (top - 1) * s.W), 0);
    for (Index r = top; r < bottom; ++r) {
      const Taps3 row = strip.Read(x + r * s.W);
      const V below = r + 1 < bottom ? read(r + 1) : V{};
      add(below, row, 0);
      add(v, row, 3);
      add(above, row, 6);
      above = v;
      v = below;
    }
    if (bottom < s.H) add(above, strip.Read(x + bottom * s.W), 6);
  } else {
    V v = read(top);
    if (top > 0) add(v, strip.Read(x + (2 * top - 1) * s.W), 0);
    for (Index r = top; r < bottom; ++r) {
      const V below = r + 1 < bottom ? read(r + 1) : V{};
      add(v, strip.Read(x + 2 * r * s.W), 3);
      if (2 * r + 1 < s.H) {
        const Taps3 row = strip.Read(x + (2 * r + 1) * s.W);
        add(v, row, 6);
        add(below, row, 0);
      }
      v = below;
    }
  }
  for (Index t = 0; t < 9; ++t) sums[t] = sum[t];
}

template <Index kStride>
void RowsDw(const Call& call, const Geometry& s, const float* g, const float* x, float* dw) {
  // Neighbouring channels go together through the images, for memory is fast where it is read in order.
  constexpr Index kGroup = 16;
  ForRanges(call, s.C, static_cast<double>(s.N * s.OH * s.OW) * 0.7, 1, [=](Index begin, Index end) {
    for (Index first = begin; first < end; first += kGroup) {
      const Index last = Min(end, first + kGroup);
      TapBlocks<9> sums[kGroup];
      for (TapBlocks<9>& own : sums) own.Clear(9);
      for (Index i = 0; i < s.N; ++i) {
        for (Index c = first; c < last; ++c) {
          const Index plane = i * s.C + c;
          TapBlocks<9>& own = sums[c - first];
          ForStrips<kStride>(s.OW, s.W, [&](const auto strip, Index had) {
            for (Index top = 0; top < s.OH; top += TapBlocks<9>::kBlock) {
              const Index bottom = Min(s.OH, top + TapBlocks<9>::kBlock);
              own.Make(bottom - top);
              DotStrip<kStride>(s, strip, had, top, bottom, g + plane * s.OH * s.OW, x + plane * s.H * s.W, own.block);
            }
          });
        }
      }
      for (Index c = first; c < last; ++c) {
        TapBlocks<9>& own = sums[c - first];
        own.Flush();
        for (Index t = 0; t < 9; ++t) dw[c * 9 + t] = static_cast<float>(own.total[t].Total());
      }
    }
  });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_DEPTHWISE_ROWS_H_
