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
// Vectors are read and written past the last element that counts.
constexpr Index kSlack = 2 * kWidth;

struct Phases {
  explicit Phases(const Geometry& g)
      : s(g), columns(s.OW + (s.kw - 1) / s.sw), lag((s.kh - 1) / s.sh), taps(s.kh * s.kw),
        fits(s.kh <= kMostTaps && s.kw <= kMostTaps && taps <= kMostTaps && s.sh <= s.kh && s.sw <= s.kw &&
             columns <= kPhaseFloats && (1 + lag) * s.sh * s.sw * columns <= kPhaseFloats) {
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

  // The phases of one band. Both buffers are 0 at first; with a single band what is outside the image stays so.
  void Split(const float* x, Index first_output, float* padded, float* phases) const {
    float* rows = s.sw == 1 ? phases : padded;
    if (band < s.OH) Zero(s.sh * s.sw * plane, rows);
    ForImageRows(first_output, [&](Index iy, Index at) { CopyShort(covered, x + iy * s.W, rows + at); });
    // Row by row would be one pass less, but a store that is read back at once, at another alignment, stalls.
    if (s.sw > 1) Deal(padded, phases);
  }

  // The transpose of Split: adds a band's phases to the image.
  void AddJoined(const float* phases, Index first_output, float* padded, float* x) const {
    if (s.sw > 1) Collect(phases, padded);
    const float* rows = s.sw == 1 ? phases : padded;
    ForImageRows(first_output, [&](Index iy, Index at) {
      float* row = x + iy * s.W;
      Map(covered, row, rows + at, row, [](V a, V b) { return a + b; });
    });
  }

  const Geometry& s;
  Index columns, lag, taps;
  bool fits;
  Index band = 0, plane = 0, covered = 0;
  Index phase[kMostTaps], shift[kMostTaps];

 private:
  // f(image row, where its first element stands) for the rows of one band that are inside the image, in a buffer that
  // holds the padded rows i sh, then the rows i sh + 1, ...: each run becomes the sw phases that follow one another.
  template <typename F>
  HEDGEROW_INLINE void ForImageRows(Index first_output, F f) const {
    for (Index r = 0; r < (band + lag) * s.sh; ++r) {
      const Index iy = first_output * s.sh + r - s.ph;
      if (iy >= 0 && iy < s.H) f(iy, (r % s.sh * plane + r / s.sh * columns) * s.sw + s.pw);
    }
  }

  // phases[(i sw + b) plane + j] = padded[i sw plane + j sw + b]
  void Deal(const float* padded, float* phases) const {
    VI evens, odds;
    for (int i = 0; i < kWidth; ++i) {
      evens[i] = 2 * i;
      odds[i] = 2 * i + 1;
    }
    for (Index i = 0; i < s.sh; ++i, padded += s.sw * plane, phases += s.sw * plane) {
      if (s.sw == 2) {
        ForVectors(plane, [&](Index j, Index k) {
          const V a = Load(padded + 2 * j), b = Load(padded + 2 * j + kWidth);
          StorePart(phases + j, Shuffle(a, b, evens), k);
          StorePart(phases + plane + j, Shuffle(a, b, odds), k);
        });
      } else {
        for (Index b = 0; b < s.sw; ++b) {
          for (Index j = 0; j < plane; ++j) phases[b * plane + j] = padded[j * s.sw + b];
        }
      }
    }
  }

  void Collect(const float* phases, float* padded) const {
    VI low, high;
    for (int i = 0; i < kWidth; ++i) {
      low[i] = i / 2 + i % 2 * static_cast<int>(kWidth);
      high[i] = low[i] + static_cast<int>(kWidth) / 2;
    }
    for (Index i = 0; i < s.sh; ++i, padded += s.sw * plane, phases += s.sw * plane) {
      if (s.sw == 2) {
        ForVectors(plane, [&](Index j, Index k) {
          const V a = LoadPart(phases + j, k), b = LoadPart(phases + plane + j, k);
          Store(padded + 2 * j, Shuffle(a, b, low));
          Store(padded + 2 * j + kWidth, Shuffle(a, b, high));
        });
      } else {
        for (Index b = 0; b < s.sw; ++b) {
          for (Index j = 0; j < plane; ++j) padded[j * s.sw + b] = phases[b * plane + j];
        }
      }
    }
  }
};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_PHASES_H_
