// An image's windows as the columns of a matrix, and back.
#ifndef HEDGEROW_CONV_COLUMNS_H_
#define HEDGEROW_CONV_COLUMNS_H_

#include "conv/geometry.h"

namespace hedgerow {
namespace {

// f(row of the matrix at one output row, input row or nullptr where it is outside, output columns that are inside), for
// the matrix [(c kh + k) kw + l][oy OW + ox]; output column ox meets input row[ox * sw].
template <typename Pointer, typename Image, typename F>
HEDGEROW_INLINE void ForMatrixRows(const Geometry& s, Pointer columns, Image x, F f) {
  for (Index c = 0; c < s.group_channels; ++c, x += s.H * s.W) {
    for (Index k = 0; k < s.kh; ++k) {
      for (Index l = 0; l < s.kw; ++l) {
        const Span inside = s.Columns(l);
        for (Index oy = 0; oy < s.OH; ++oy, columns += s.OW) {
          const Index iy = oy * s.sh + k - s.ph;
          f(columns, iy < 0 || iy >= s.H ? nullptr : x + iy * s.W + l - s.pw, inside);
        }
      }
    }
  }
}

void WindowsToColumns(const Geometry& s, const float* x, float* columns) {
  ForMatrixRows(s, columns, x, [&](float* out, const float* row, Span inside) {
    if (row == nullptr) return ZeroShort(s.OW, out);
    ZeroShort(inside.first, out);
    if (s.sw == 1) {
      CopyShort(inside.last - inside.first, row + inside.first, out + inside.first);
    } else {
      for (Index ox = inside.first; ox < inside.last; ++ox) out[ox] = row[ox * s.sw];
    }
    ZeroShort(s.OW - inside.last, out + inside.last);
  });
}

// The transpose: each column element is added to the place of x that it was read from.
void AddColumnsToWindows(const Geometry& s, const float* columns, float* x) {
  ForMatrixRows(s, columns, x, [&](const float* from, float* row, Span inside) {
    if (row == nullptr) return;
    if (s.sw == 1) {
      float* to = row + inside.first;
      Map(inside.last - inside.first, to, from + inside.first, to, [](V a, V b) { return a + b; });
    } else {
      for (Index ox = inside.first; ox < inside.last; ++ox) row[ox * s.sw] += from[ox];
    }
  });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_COLUMNS_H_
