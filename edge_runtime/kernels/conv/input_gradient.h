// conv2d_dx: the windows of g times the weights turned round. A stride makes phases of dx, each with its own part of
// the kernel, so that nothing is multiplied by zeros between the outputs and nothing is scattered.
#ifndef HEDGEROW_CONV_INPUT_GRADIENT_H_
#define HEDGEROW_CONV_INPUT_GRADIENT_H_

#include "conv/forward.h"

namespace hedgerow {
namespace {

// One axis of one phase: element q stride + offset of dx, for q in `places`, meets g[q - m] at kernel place
// phase + stride m, for m < taps.
struct PhaseAxis {
  PhaseAxis(Index phase, Index stride, Index padding, Index image, Index kernel)
      : first_tap(phase), offset(phase - padding), taps(phase < kernel ? (kernel - 1 - phase) / stride + 1 : 0),
        places(Inside((image + padding) / stride + 1, stride, offset, image)) {}
  Index first_tap, offset, taps;
  Span places;
};

// The places of all phases of an axis.
Span AllPlaces(Index stride, Index padding, Index image) {
  const Index last = (image - 1 + padding) / stride + 1;
  return {Min(padding / stride, last - 1), last};
}

void ConvDx(const Call& call, const Geometry& s, const float* g, const float* w, float* dx) {
  const Index places = s.OH * s.OW, taps = s.kh * s.kw, depth = s.group_channels * taps;
  const Index lag_h = (s.kh - 1) / s.sh, lag_w = (s.kw - 1) / s.sw;
  const Span rows = AllPlaces(s.sh, s.ph, s.H), columns = AllPlaces(s.sw, s.pw, s.W);
  const Index pitch = columns.last - columns.first + lag_w;
  const bool in_place = s.Pointwise() && places % kWidth == 0;
  const bool fields = !in_place && s.sh <= s.H && s.sw <= s.W && lag_h < kMostFieldTaps && lag_w < kMostFieldTaps &&
                      (lag_h + 1) * (lag_w + 1) <= kMostFieldTaps;
  Band band{0, 0};
  if (fields) {
    const Index channels = EvenPart(s.group_outputs, kDepth / ((lag_h + 1) * (lag_w + 1)));
    band = FitBand(pitch, lag_h, rows.last - rows.first, channels);
  }
  const Field field{s.OH, s.OW, lag_h, lag_w - columns.first, 1, 1, 1, 1, band.rows + lag_h, pitch};

  // Rows of phase a in the band that starts at `first`, from some channels of g in `scratch`: columns of phase b, or
  // with `pair` those of both phases.
  auto phase = [&](Index a, Index b, bool pair, Index first, Index channels, const float* kernel, const float* scratch,
                   bool add, float* image) {
    const PhaseAxis down(a, s.sh, s.ph, s.H, s.kh), across(b, s.sw, s.pw, s.W, s.kw);
    const PhaseAxis other(pair ? 1 - b : b, s.sw, s.pw, s.W, s.kw);
    const Index q = Max(first, down.places.first), end = Min(first + band.rows, down.places.last);
    const Index r = across.places.first, n = across.places.last - r;
    if (q >= end || n <= 0) return;
    auto taps_of = [&](const PhaseAxis& axis) {
      Taps found{down.taps * axis.taps, {}};
      for (Index t = 0; t < found.count; ++t) {
        const Index k = t / axis.taps, l = t % axis.taps;
        found.at[t] = {(a + k * s.sh) * s.kw + axis.first_tap + l * s.sw, -k * pitch - l};
      }
      return found;
    };
    const Taps even = taps_of(across), odd = pair ? taps_of(other) : Taps{};
    const Correlation product{s.group_channels, taps,       depth, field.Channel(), pitch, pair ? s.W : n,
                              s.H * s.W,        s.sh * s.W, s.sw,  pair,            other.places.first - r, false};
    // The rows of the phase's kernel for which dx's row meets one of g.
    auto inside = [&](Index row) {
      const Index k = Min(down.taps, Max(0, row - s.OH + 1));
      return Span{k, Max(k, Min(down.taps, row + 1))};
    };
    ForTapRows(product, even, down.taps, q, end, inside, [&](Index row, Index n_rows, const Taps& met) {
      const float* at = scratch + (row - first + lag_h) * pitch + r - columns.first + lag_w;
      CorrelateBand(product, channels, met, pair ? &odd : nullptr, kernel, at, n_rows, Finish{nullptr, add, 0},
                    image + (row * s.sh + down.offset) * s.W + (pair ? 0 : r * s.sw + across.offset));
    });
  };

  const Index bands = band.rows ? (rows.last - rows.first + band.rows - 1) / band.rows : 1;
  const Index units = s.N * s.groups * bands;
  const double ns = kNsPerMultiplication * static_cast<double>(s.N * s.O * places) / units * depth;
  ForRanges(call, units, ns, 1, [&](Index from, Index to) {
    alignas(64) float scratch[kFieldFloats + kFieldSlack];
    for (Index unit = from; unit < to; ++unit) {
      const Index i = unit / bands, first = rows.first + unit % bands * band.rows;
      const float *outputs = g + i * s.group_outputs * places, *kernel = w + i % s.groups * s.group_outputs * depth;
      float* image = dx + i * s.group_channels * s.H * s.W;
      if (in_place) {
        CorrelateInPlace(s.group_channels, s.group_outputs, places, kernel, 1, depth, outputs, Finish{}, image);
      } else if (band.rows == 0) {
        DxAnywhere(s, outputs, kernel, image);
      } else {
        for (Index o = 0; o < s.group_outputs; o += band.channels) {
          const Index channels = Min(band.channels, s.group_outputs - o);
          field.Fill(outputs + o * places, channels, first, scratch);
          for (Index a = 0; a < s.sh; ++a) {
            if (s.sw == 2) {
              phase(a, s.pw % 2, true, first, channels, kernel + o * depth, scratch, o > 0, image);
              continue;
            }
            for (Index b = 0; b < s.sw; ++b) {
              phase(a, b, false, first, channels, kernel + o * depth, scratch, o > 0, image);
            }
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_INPUT_GRADIENT_H_
