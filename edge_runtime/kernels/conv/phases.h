// A padded plane as its sh x sw phases, so that a strided window becomes a plain one.
//
// Phase (a, b) holds the padded plane's elements (i sh + a, j sw + b), in rows of `columns` floats: as many as there
// are output columns, and those that the last window adds. Output (oy, ox) is given the flat index oy columns + ox;
// kernel place (k, l) then meets it at flat index + a constant, for all outputs at once and with no edges: what lies
// between the rows of outputs is computed and left out. A plane is worked on in bands of output rows that fit the
// stack.
#ifndef HEDGEROW_CONV_PHASES_H_
#define HEDGEROW_CONV_PHASES_H_

#include "conv/geometry.h"
#include "isa/transpose.h"

namespace hedgerow {
namespace {

constexpr Index kPhaseFloats = 4096;  // all phases of a band: half of a small L1 cache
constexpr Index kMostTaps = 49;
constexpr Index kLineFloats = 2048;

struct Phases {
  explicit Phases(const Geometry& g)
      : s(g), columns(s.OW + (s.kw - 1) / s.sw), lag((s.kh - 1) / s.sh), taps(s.kh * s.kw),
        fits(s.kh <= kMostTaps && s.kw <= kMostTaps && taps <= kMostTaps && s.sh <= s.kh && s.sw <= s.kw &&
             columns <= kLineFloats / s.sw && (1 + lag) * s.sh * s.sw * columns <= kPhaseFloats) {
    if (!fits) return;
    band = Min(s.OH, kPhaseFloats / (s.sh * s.sw * columns) - lag);
    plane = (band + lag) * columns;
    covered = Max(0, Min(s.W, columns * s.sw - s.pw));
    for (Index t = 0; t < taps; ++t) {
      const Index k = t / s.kw, l = t % s.kw;
      phase[t] = k % s.sh * s.sw + l % s.sw;
      shift[t] = k / s.sh * columns + l / s.sw;
    }
  }

  // f(first output row, output rows) for each band.
  template <typename F>
  HEDGEROW_INLINE void ForBands(F f) const {
    for (Index first = 0; first < s.OH; first += band) f(first, Min(band, s.OH - first));
  }

  // f(image row, where its phase 0 starts) for the rows of one band that are inside the image.
  template <typename F>
  HEDGEROW_INLINE void ForImageRows(Index first_output, F f) const {
    for (Index r = 0; r < (band + lag) * s.sh; ++r) {
      const Index iy = first_output * s.sh + r - s.ph;
      if (iy >= 0 && iy < s.H) f(iy, r % s.sh * s.sw * plane + r / s.sh * columns);
    }
  }

  // The phases of one band. What is outside the image must be 0 already; with a single band it stays so.
  void Split(const float* x, Index first_output, float* phases) const {
    if (band < s.OH) Zero(s.sh * s.sw * plane, phases);
    ForImageRows(first_output, [&](Index iy, Index at) {
      if (s.sw == 1) return CopyShort(covered, x + iy * s.W, phases + at + s.pw);
      float line[kLineFloats + 2 * kWidth];
      ZeroShort(Min(s.pw, columns * s.sw), line);
      CopyShort(covered, x + iy * s.W, line + s.pw);
      ZeroShort(Max(0, columns * s.sw + 2 * kWidth - s.pw - covered), line + s.pw + covered);
      if (s.sw == 2) return SplitPairs(line, phases + at, phases + at + plane);
      for (Index b = 0; b < s.sw; ++b) {
        for (Index j = 0; j < columns; ++j) phases[at + b * plane + j] = line[j * s.sw + b];
      }
    });
  }

  // The transpose of Split: adds a band's phases to the image.
  void AddJoined(const float* phases, Index first_output, float* x) const {
    ForImageRows(first_output, [&](Index iy, Index at) {
      float line[kLineFloats + 2 * kWidth];
      if (s.sw == 2) {
        JoinPairs(phases + at, phases + at + plane, line);
      } else {
        for (Index b = 0; b < s.sw && s.sw > 1; ++b) {
          for (Index j = 0; j < columns; ++j) line[j * s.sw + b] = phases[at + b * plane + j];
        }
      }
      float* row = x + iy * s.W;
      const float* from = (s.sw == 1 ? phases + at : line) + s.pw;
      Map(covered, row, from, row, [](V a, V b) { return a + b; });
    });
  }

  const Geometry& s;
  Index columns, lag, taps;
  bool fits;
  Index band = 0, plane = 0, covered = 0;
  Index phase[kMostTaps], shift[kMostTaps];

 private:
  HEDGEROW_INLINE void SplitPairs(const float* line, float* even, float* odd) const {
    VI evens, odds;
    for (int i = 0; i < kWidth; ++i) {
      evens[i] = 2 * i;
      odds[i] = 2 * i + 1;
    }
    ForVectors(columns, [&](Index j, Index k) {
      const V a = Load(line + 2 * j), b = Load(line + 2 * j + kWidth);
      StorePart(even + j, Shuffle(a, b, evens), k);
      StorePart(odd + j, Shuffle(a, b, odds), k);
    });
  }

  HEDGEROW_INLINE void JoinPairs(const float* even, const float* odd, float* line) const {
    VI low, high;
    for (int i = 0; i < kWidth; ++i) {
      low[i] = i / 2 + i % 2 * static_cast<int>(kWidth);
      high[i] = low[i] + static_cast<int>(kWidth) / 2;
    }
    ForVectors(columns, [&](Index j, Index k) {
      const V a = LoadPart(even + j, k), b = LoadPart(odd + j, k);
      Store(line + 2 * j, Shuffle(a, b, low));
      Store(line + 2 * j + kWidth, Shuffle(a, b, high));
    });
  }
};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_PHASES_H_
