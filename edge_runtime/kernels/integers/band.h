// A rectangle of outputs' windows in scratch: padded, and of the type that the ISA multiplies.
#ifndef HEDGEROW_INTEGERS_BAND_H_
#define HEDGEROW_INTEGERS_BAND_H_

#include "conv/geometry.h"
#include "integers/packed.h"
#include "integers/rounding.h"

namespace hedgerow {
namespace {

// What a band should not be larger than, to stay in the first-level cache; a single window may be.
constexpr Index kBandBytes = 20 * 1024;
// Vectors are read past the last element that counts; they meet weights of 0.
constexpr Index kBandSlack = 64;

// Images as channels last: ints 0 to 3 are N H W C, and kernel, strides, padding and the padding's value follow.
struct ImageGeometry {
  Index N, H, W, C, kh, kw, sh, sw, ph, pw, OH, OW;

  static ImageGeometry Of(const Call& call, int kernel, bool padded) {
    ImageGeometry s{call.size(0),          call.size(1),          call.size(2),          call.size(3),
                    call.size(kernel),     call.size(kernel + 1), call.size(kernel + 2), call.size(kernel + 3),
                    0,                     0,                     0,                     0};
    if (padded) s.ph = call.size(kernel + 4), s.pw = call.size(kernel + 5);
    s.OH = (s.H + 2 * s.ph - s.kh) / s.sh + 1;
    s.OW = (s.W + 2 * s.pw - s.kw) / s.sw + 1;
    return s;
  }
};

// How outputs are cut into rectangles of rows x columns, and what their windows take together: `field_rows` rows of
// `field_columns` pixels of `channels`.
struct Cut {
  // kh kw channels <= most.
  Cut(const ImageGeometry& s, Index channels, Index most) : channels(channels) {
    // Most layers fit whole, and a division takes as long as a small layer's sums. In double: a stride may be huge.
    const Index all_rows = (s.OH - 1) * s.sh + s.kh, all_columns = (s.OW - 1) * s.sw + s.kw;
    const double pixels = static_cast<double>(all_rows) * static_cast<double>(all_columns);
    if (pixels * static_cast<double>(channels) <= kBandBytes) {
      rows = s.OH, columns = s.OW, field_rows = all_rows, field_columns = all_columns, across = down = 1;
      return;
    }
    auto fit = [](Index room, Index kernel, Index stride, Index places) {
      return room <= kernel ? 1 : Min(places, (room - kernel) / stride + 1);
    };
    const Index room = Max(kBandBytes, Min(most, s.kh * s.kw * channels));
    columns = EvenPart(s.OW, fit(room / (s.kh * channels), s.kw, s.sw, s.OW));
    field_columns = (columns - 1) * s.sw + s.kw;
    rows = EvenPart(s.OH, fit(room / (field_columns * channels), s.kh, s.sh, s.OH));
    field_rows = (rows - 1) * s.sh + s.kh;
    across = (s.OW + columns - 1) / columns;
    down = (s.OH + rows - 1) / rows;
  }

  Index Pitch() const { return field_columns * channels; }
  Index Bands() const { return across * down; }
  // Where band i of all images' begins.
  struct Place {
    Index image, row, column;
  };
  HEDGEROW_INLINE Place At(Index i) const {
    if (i == 0) return {0, 0, 0};
    const Index image = i / Bands(), place = i % Bands();
    return {image, place / across * rows, place % across * columns};
  }

  Index channels, rows, columns, field_rows, field_columns, across, down;
};

// The part of [offset, offset + places) that is in [0, image), from offset on.
HEDGEROW_INLINE Span InsideOf(Index places, Index offset, Index image) {
  const Index last = Max(0, Min(places, image - offset));
  return {Min(Max(0, -offset), last), last};
}

// Channels [first, first + cut.channels) of the windows of outputs from (row, column) on; x is one image. Elements are
// x + kOffset, and padding is `zero` + kOffset.
template <typename T, int kOffset>
void FillBand(const ImageGeometry& s, const Cut& cut, const int8_t* x, Index first, Index row, Index column, int zero,
              T* to) {
  auto convert = [](Index n, const int8_t* from, T* out) {
    for (Index i = 0; i < n; ++i) out[i] = static_cast<T>(from[i] + kOffset);
  };
  auto pad = [=](Index n, T* out) {
    for (Index i = 0; i < n; ++i) out[i] = static_cast<T>(zero + kOffset);
  };
  const Index channels = cut.channels, left = column * s.sw - s.pw, top = row * s.sh - s.ph;
  const Span columns = InsideOf(cut.field_columns, left, s.W), rows = InsideOf(cut.field_rows, top, s.H);
  const Index pitch = cut.Pitch(), inside = columns.last - columns.first;
  pad(rows.first * pitch, to);
  if (inside == s.W && inside == cut.field_columns && channels == s.C) {
    convert((rows.last - rows.first) * pitch, x + (top + rows.first) * s.W * s.C, to + rows.first * pitch);
  } else {
    for (Index r = rows.first; r < rows.last; ++r) {
      T* out = to + r * pitch;
      const int8_t* from = x + ((top + r) * s.W + left + columns.first) * s.C + first;
      pad(columns.first * channels, out);
      if (channels == s.C) {
        convert(inside * channels, from, out + columns.first * channels);
      } else {
        for (Index i = 0; i < inside; ++i) convert(channels, from + i * s.C, out + (columns.first + i) * channels);
      }
      pad((cut.field_columns - columns.last) * channels, out + columns.last * channels);
    }
  }
  pad((cut.field_rows - rows.last) * pitch + kBandSlack, to + rows.last * pitch);
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_BAND_H_
