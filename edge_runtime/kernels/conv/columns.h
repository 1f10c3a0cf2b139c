// An image's windows as the columns of a matrix, and back.
#ifndef HEDGEROW_CONV_COLUMNS_H_
#define HEDGEROW_CONV_COLUMNS_H_

#include "conv/geometry.h"

namespace hedgerow {
namespace {

// The outputs that one kernel place joins: element (r, j) of `matrix`, in rows of OW, meets element (r sh, j sw) of
// `image`, in rows of W.
template <typename Matrix, typename Image>
struct Meeting {
  Matrix matrix;
  Image image;
  Index rows, columns;
};

// f(row of the matrix, the part of it that is inside the image), for the matrix [(c kh + k) kw + l][oy OW + ox].
template <typename Matrix, typename Image, typename F>
HEDGEROW_INLINE void ForMatrixRows(const Geometry& s, Matrix matrix, Image x, F f) {
  for (Index c = 0; c < s.group_channels; ++c, x += s.H * s.W) {
    for (Index k = 0; k < s.kh; ++k) {
      const Span rows = Inside(s.OH, s.sh, k - s.ph, s.H);
      for (Index l = 0; l < s.kw; ++l, matrix += s.OH * s.OW) {
        const Span columns = Inside(s.OW, s.sw, l - s.pw, s.W);
        f(matrix, Meeting<Matrix, Image>{matrix + rows.first * s.OW + columns.first,
                                         x + (rows.first * s.sh + k - s.ph) * s.W + columns.first * s.sw + l - s.pw,
                                         rows.last - rows.first, columns.last - columns.first});
      }
    }
  }
}

void WindowsToColumns(const Geometry& s, const float* x, float* matrix) {
  const Index places = s.OH * s.OW;
  ForMatrixRows(s, matrix, x, [&](float* row, Meeting<float*, const float*> m) {
    if (m.rows * m.columns < places) Zero(places, row);
    const Index n = m.columns, step = s.sh * s.W;
    if (s.sw > 1) {
      for (Index r = 0; r < m.rows; ++r, m.matrix += s.OW, m.image += step) {
        for (Index j = 0; j < n; ++j) m.matrix[j] = m.image[j * s.sw];
      }
    } else if (n >= kWidth && n <= 2 * kWidth) {
      // The usual width of a small network's layers, without CopyShort's branches.
      for (Index r = 0; r < m.rows; ++r, m.matrix += s.OW, m.image += step) {
        const V first = Load(m.image), last = Load(m.image + n - kWidth);
        Store(m.matrix, first);
        Store(m.matrix + n - kWidth, last);
      }
    } else {
      for (Index r = 0; r < m.rows; ++r, m.matrix += s.OW, m.image += step) CopyShort(n, m.image, m.matrix);
    }
  });
}

// The transpose: each element of the matrix is added to the place of x that it was read from.
void AddColumnsToWindows(const Geometry& s, const float* matrix, float* x) {
  ForMatrixRows(s, matrix, x, [&](const float*, Meeting<const float*, float*> m) {
    for (Index r = 0; r < m.rows; ++r, m.matrix += s.OW, m.image += s.sh * s.W) {
      if (s.sw == 1) {
        Map(m.columns, m.image, m.matrix, m.image, [](V a, V b) { return a + b; });
      } else {
        for (Index j = 0; j < m.columns; ++j) m.image[j * s.sw] += m.matrix[j];
      }
    }
  });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_COLUMNS_H_
