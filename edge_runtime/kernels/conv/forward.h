// conv2d: each image's windows times the weights.
#ifndef HEDGEROW_CONV_FORWARD_H_
#define HEDGEROW_CONV_FORWARD_H_

#include "conv/anywhere.h"
#include "conv/correlate.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

// How many rows of outputs, and channels, a Field has room for; 0 rows where not even one fits.
struct Band {
  Index rows, channels;
};

// `row` floats a channel and row, `lag` rows more than outputs, at most `most` rows and `channels` channels.
Band FitBand(Index row, Index lag, Index most, Index channels) {
  if (row > kFieldFloats || lag > kFieldFloats) return {0, 0};
  for (;; channels = (channels + 1) / 2) {
    const Index rows = Min(most, kFieldFloats / (row * channels) - lag);
    if (rows >= Min(most, 4) || (channels == 1 && rows > 0)) return {EvenPart(most, rows), channels};
    if (channels == 1) return {0, 0};
  }
}

// What the windows of a convolution's inputs look like in a Field, for bands of `rows` rows of outputs.
Field WindowField(const Geometry& s, Index rows) {
  return {s.H, s.W, s.ph, s.pw, s.sh, s.sw, Min(s.sh, s.kh), Min(s.sw, s.kw), rows + (s.kh - 1) / s.sh,
          s.OW + (s.kw - 1) / s.sw};
}

// How far from an output's place in a Field the element stands that it meets at kernel place (k, l).
HEDGEROW_INLINE Index TapPlace(const Geometry& s, const Field& f, Index k, Index l) {
  return (k % s.sh * f.kept_w + l % s.sw) * f.Phase() + k / s.sh * f.pitch + l / s.sw;
}

// One image and group, all in place: a column of places for each channel, one row of outputs.
void CorrelateInPlace(Index M, Index channels, Index places, const float* w, Index w_row, Index w_channel,
                      const float* x, const Finish& finish, float* out) {
  const Taps one{1, {}};
  const Correlation s{M, w_row, w_channel, places, places, places, places, places, 1, false, 0, true};
  const Index part = EvenPart(channels, kDepth);
  for (Index c = 0; c < channels; c += part) {
    const Index count = Min(part, channels - c);
    CorrelateBand(s, count, one, nullptr, w + c * w_channel, x + c * places, 1,
                  Finish{finish.bias, c > 0, c + count == channels ? finish.act : 0}, out);
  }
}

void ConvForward(const Call& call, const Geometry& s, const float* x, const float* w, const float* b, Index act,
                 float* y) {
  const Index places = s.OH * s.OW, taps = s.kh * s.kw, depth = s.group_channels * taps;
  const bool in_place = s.Pointwise() && places % kWidth == 0, fields = !in_place && taps <= kMostFieldTaps;
  Band band{0, 0};
  if (fields) {
    const Field one = WindowField(s, 1);
    band = FitBand(one.kept_h * one.kept_w * one.pitch, (s.kh - 1) / s.sh, s.OH,
                   EvenPart(s.group_channels, kDepth / taps));
  }
  const Field field = WindowField(s, band.rows);
  Taps all{taps, {}};
  for (Index t = 0; band.rows && t < taps; ++t) all.at[t] = {t, TapPlace(s, field, t / s.kw, t % s.kw)};
  const Correlation product{s.group_outputs, depth,  taps, field.Channel(), field.pitch, s.OW,
                            places,          s.OW,   1,    false,           0,    false};
  // The kernel's rows that output row q meets inside the image.
  auto inside = [&](Index q) {
    const Index top = q * s.sh - s.ph, from = Min(s.kh, Max(0, -top));
    return Span{from, Max(from, Min(s.kh, s.H - top))};
  };
  const Index bands = band.rows ? (s.OH + band.rows - 1) / band.rows : 1, units = s.N * s.groups * bands;
  const double ns = kNsPerMultiplication * static_cast<double>(s.N * s.O * places) / units * depth;
  ForRanges(call, units, ns, 1, [&](Index from, Index to) {
    alignas(64) float scratch[kFieldFloats + kFieldSlack];
    for (Index unit = from; unit < to; ++unit) {
      const Index i = unit / bands, first = unit % bands * band.rows, g = i % s.groups;
      const float *image = x + i * s.group_channels * s.H * s.W, *kernel = w + g * s.group_outputs * depth;
      const float* bias = b ? b + g * s.group_outputs : nullptr;
      float* out = y + i * s.group_outputs * places;
      if (in_place) {
        const Finish finish{bias, false, act};
        CorrelateInPlace(s.group_outputs, s.group_channels, places, kernel, depth, 1, image, finish, out);
      } else if (band.rows == 0) {
        ForwardAnywhere(s, image, kernel, bias, out);
        Activate(act, s.group_outputs * places, out);
      } else {
        for (Index c = 0; c < s.group_channels; c += band.channels) {
          const Index channels = Min(band.channels, s.group_channels - c);
          field.Fill(image + c * s.H * s.W, channels, first, scratch);
          const Finish finish{bias, c > 0, c + channels == s.group_channels ? act : 0};
          ForTapRows(product, all, s.kh, first, Min(first + band.rows, s.OH), inside,
                     [&](Index q, Index rows, const Taps& met) {
                       CorrelateBand(product, channels, met, nullptr, kernel + c * taps,
                                     scratch + (q - first) * field.pitch, rows, finish, out + q * s.OW);
                     });
        }
      }
    }
  });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_FORWARD_H_
